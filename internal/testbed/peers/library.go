package peers

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

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

// Library returns the interpreter of a virtual environment that has the Python library. The
// environment is in the cache, under a name that changes with the pinned versions and with
// Python's.
func Library(ctx context.Context, log io.Writer) (python string, err error) {
	version, err := probe(ctx)
	if err != nil {
		if installErr := debian.Install(ctx, log, "python3", "python3-venv"); installErr != nil {
			return "", fmt.Errorf("the Python library needs Python 3.11 or newer with venv: %w\n%w", err, installErr)
		}
		if version, err = probe(ctx); err != nil {
			return "", fmt.Errorf("the Python library needs Python 3.11 or newer with venv, also after apt-get install python3 python3-venv: %w", err)
		}
	}
	root, err := cache.DefaultRoot()
	if err != nil {
		return "", err
	}
	pinned := sha256.Sum256(append(bytes.Clone(requirements), constraints...))
	dir, err := cache.Fill(ctx, root, fmt.Sprintf("sagaz-venv-%s-%x", version, pinned[:4]), fillVenv(ctx, log))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bin", "python"), nil
}

// LibraryVersion is the pinned version of the library.
func LibraryVersion() string {
	for line := range strings.Lines(string(requirements)) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), "sagaz=="); ok {
			return version
		}
	}
	return "unknown"
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
func fillVenv(ctx context.Context, log io.Writer) func(dir string) error {
	return func(dir string) error {
		progress(log, "installing the Python library sagaz with pip")
		pins, err := os.MkdirTemp("", "sagaz-pins-")
		if err != nil {
			return fmt.Errorf("create directory for pip: %w", err)
		}
		defer os.RemoveAll(pins) //nolint:errcheck // a temporary directory
		for name, text := range map[string][]byte{"requirements.txt": requirements, "constraints.txt": constraints} {
			if err := os.WriteFile(filepath.Join(pins, name), text, 0o644); err != nil {
				return fmt.Errorf("write pins for pip: %w", err)
			}
		}
		if err := run(ctx, dir, "python3", "-m", "venv", dir); err != nil {
			return err
		}
		return run(ctx, dir, filepath.Join(dir, "bin", "python"), append(pip(), "-r", filepath.Join(pins, "requirements.txt"))...)
	}
}

func pip() []string {
	return []string{"-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"}
}

// run runs a program in dir, where Maven and pip may leave what they like.
func run(ctx context.Context, dir, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out)
	}
	return nil
}

func progress(log io.Writer, format string, args ...any) {
	if log != nil {
		fmt.Fprintf(log, format+"\n", args...)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
