// Command dashboards writes the dashboards of monitoring/: one file a dashboard, of rows of panels.
//
//	go run ./internal/dashboards
//
// `make docs` runs it too, and a test compares the files. Layout, ids, data sources and the
// selector of every query come from here, so what Grafana's linter looks for need not be looked
// for.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	for name, d := range files() {
		text, err := encode(d)
		if err == nil {
			err = os.WriteFile(filepath.Join("monitoring", name), text, 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// files are the dashboards by the names of their files.
func files() map[string]dashboard {
	return map[string]dashboard{
		"grafana-dashboard-outbox.json":      outbox(),
		"grafana-dashboard-replication.json": replication(),
		"grafana-dashboard-saga.json":        saga(),
		"grafana-dashboard-logs.json":        logbook(),
	}
}

func encode(d dashboard) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(d)
	return b.Bytes(), err
}
