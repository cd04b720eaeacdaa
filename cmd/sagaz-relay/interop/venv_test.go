package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/cache"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

var (
	//go:embed testdata/requirements.txt
	requirements []byte
	//go:embed testdata/constraints.txt
	constraints []byte
)

// The library wants Python 3.11. ensurepip is what Debian leaves out of python3 and puts into
// python3-venv.
const probePython = `import sys, venv, ensurepip
assert sys.version_info >= (3, 11), "Python %d.%d, want 3.11 or newer" % sys.version_info[:2]
print("%d.%d" % sys.version_info[:2])`

// python returns the interpreter of a virtual environment that has the library. The environment is
// in the cache, under a name that changes with the pinned versions and with Python's.
func python(t *testing.T) string {
	t.Helper()
	// a download, and other processes that wait for it
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	version, err := probe(ctx)
	if err != nil {
		if installErr := debian.Install(ctx, os.Stderr, "python3", "python3-venv"); installErr != nil {
			t.Fatalf("the interop test needs Python 3.11 or newer with venv: %v\n%v", err, installErr)
		}
		if version, err = probe(ctx); err != nil {
			t.Fatalf("the interop test needs Python 3.11 or newer with venv, also after apt-get install python3 python3-venv: %v", err)
		}
	}
	root, err := cache.DefaultRoot()
	if err != nil {
		t.Fatal(err)
	}
	pinned := sha256.Sum256(append(bytes.Clone(requirements), constraints...))
	dir, err := cache.Fill(ctx, root, fmt.Sprintf("sagaz-venv-%s-%x", version, pinned[:4]), fillVenv(ctx))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "bin", "python")
}

func probe(ctx context.Context) (version string, err error) {
	probe := exec.CommandContext(ctx, "python3", "-c", probePython)
	var out, problem bytes.Buffer
	probe.Stdout, probe.Stderr = &out, &problem
	if err := probe.Run(); err != nil {
		return "", fmt.Errorf("python3: %w: %s", err, lastLine(problem.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// fillVenv makes the environment. It is moved afterwards, which its python does not mind; the
// scripts next to it would, and we call none of them.
func fillVenv(ctx context.Context) func(dir string) error {
	return func(dir string) error {
		fmt.Fprintln(os.Stderr, "installing the Python library sagaz with pip")
		files, err := filepath.Abs("testdata")
		if err != nil {
			return err
		}
		for _, args := range [][]string{
			{"python3", "-m", "venv", dir},
			{filepath.Join(dir, "bin", "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r", filepath.Join(files, "requirements.txt")},
		} {
			if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
			}
		}
		return nil
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
