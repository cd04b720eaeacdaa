// Package product gives the checks the real binary, built from the tree around them, and what it says of itself.
package product

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
)

// Root is the directory of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "..")
}

// Read returns a file of the repository.
func Read(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root(), path))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

var build = sync.OnceValues(func() (string, error) {
	// Not a directory of its own each time: nobody would remove it. Processes that build at once write the same bytes.
	path := filepath.Join(Root(), "bin", "checks", "sagaz-relay")
	temporary := path + "." + strconv.Itoa(os.Getpid())
	cmd := exec.Command("go", "build", "-o", temporary, "./cmd/sagaz-relay")
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return path, os.Rename(temporary, path)
})

// Binary builds sagaz-relay and returns its path.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatalf("go build ./cmd/sagaz-relay: %v", err)
	}
	return path
}

// Setting is a line of `sagaz-relay settings --json`.
type Setting struct {
	Names    []string `json:"names"`
	Fallback string   `json:"fallback"`
	Default  string   `json:"default"`
	Secret   bool     `json:"secret"`
}

// Settings are those that the binary knows, by each of their names, fallbacks included.
func Settings(t testing.TB) map[string]Setting {
	t.Helper()
	cmd := exec.Command(Binary(t), "settings", "--json")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sagaz-relay settings --json: %v", err)
	}
	var list []Setting
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatal(err)
	}
	known := make(map[string]Setting)
	for _, s := range list {
		for _, name := range s.Names {
			known[name] = s
		}
		if s.Fallback != "" {
			known[s.Fallback] = s
		}
	}
	return known
}
