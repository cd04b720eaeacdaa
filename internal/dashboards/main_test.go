package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestFiles(t *testing.T) {
	for name, d := range files() {
		want, err := encode(d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join("..", "..", "monitoring", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("monitoring/%s is not what is described here: go run ./internal/dashboards", name)
		}
	}
}
