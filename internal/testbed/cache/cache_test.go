package cache

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestFillOnce(t *testing.T) {
	root := filepath.Join(t.TempDir(), "not", "there", "yet")
	var fills atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			dir, err := Fill(t.Context(), root, "thing", func(dir string) error {
				fills.Add(1)
				return os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644)
			})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := fills.Load(); got != 1 {
		t.Fatalf("filled %d times, want 1", got)
	}
}

func TestFillFailsWithoutTrace(t *testing.T) {
	root, broken := t.TempDir(), errors.New("no network")
	_, err := Fill(t.Context(), root, "thing", func(dir string) error {
		os.WriteFile(filepath.Join(dir, "half"), nil, 0o644)
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v, want %v", err, broken)
	}
	left, _ := filepath.Glob(filepath.Join(root, "thing*"))
	if len(left) != 1 || filepath.Base(left[0]) != "thing.lock" {
		t.Fatalf("left behind: %v", left)
	}
	if _, err := Fill(t.Context(), root, "thing", func(string) error { return nil }); err != nil {
		t.Fatalf("second try: %v", err)
	}
}
