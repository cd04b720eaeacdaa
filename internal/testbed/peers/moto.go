package peers

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/sagaz-relay/relay/internal/testbed/cache"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

//go:embed testdata/moto.txt
var motoPins []byte

// Moto returns the interpreter of a virtual environment that has moto's server, which speaks the
// protocols of SQS and SNS (300 MB, most of it botocore).
func Moto(ctx context.Context, log io.Writer) (python string, err error) {
	version, err := probe(ctx)
	if err != nil {
		if err := debian.Install(ctx, log, "python3", "python3-venv"); err != nil {
			return "", err
		}
		if version, err = probe(ctx); err != nil {
			return "", fmt.Errorf("moto needs Python 3.11 or newer with venv: %w", err)
		}
	}
	root, err := cache.DefaultRoot()
	if err != nil {
		return "", err
	}
	pinned := sha256.Sum256(motoPins)
	dir, err := cache.Fill(ctx, root, fmt.Sprintf("moto-venv-%s-%x", version, pinned[:4]), func(dir string) error {
		progress(log, "installing moto with pip")
		pins, err := os.CreateTemp("", "moto-pins-")
		if err != nil {
			return fmt.Errorf("create a file for pip: %w", err)
		}
		defer os.Remove(pins.Name()) //nolint:errcheck // a temporary file
		_, err = pins.Write(motoPins)
		if closeErr := pins.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("write pins for pip: %w", err)
		}
		if err := run(ctx, dir, "python3", "-m", "venv", dir); err != nil {
			return err
		}
		return run(ctx, dir, filepath.Join(dir, "bin", "python"), append(pip(), "--no-deps", "-r", pins.Name())...)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "bin", "python"), nil
}
