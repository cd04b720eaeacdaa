package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"

	"github.com/sagaz-relay/relay/internal/testbed/cache"
)

// Versions are the major versions that Start knows, with the release of each.
var Versions = map[string]string{
	"14": "14.24.0",
	"15": "15.19.0",
	"16": "16.15.0",
	"17": "17.11.0",
	"18": "18.6.0",
}

// DefaultVersion is the one that Start takes when none is given.
const DefaultVersion = "18"

// binaries returns the bin directory of a PostgreSQL, after a download if need be.
func binaries(ctx context.Context, major, root string, log io.Writer) (string, error) {
	release, ok := Versions[major]
	if !ok {
		return "", fmt.Errorf("no PostgreSQL %q here: want one of 14, 15, 16, 17, 18", major)
	}
	if root == "" {
		var err error
		if root, err = cache.DefaultRoot(); err != nil {
			return "", err
		}
	}
	name := fmt.Sprintf("postgres-%s-%s-%s", release, runtime.GOOS, runtime.GOARCH)
	dir, err := cache.Fill(ctx, root, name, func(dir string) error {
		if log != nil {
			fmt.Fprintf(log, "downloading PostgreSQL %s\n", release)
		}
		return download(ctx, release, dir)
	})
	if err != nil {
		return "", fmt.Errorf("get PostgreSQL %s (needs Maven Central once, directly or by HTTPS_PROXY; then it is in %s): %w",
			release, root, err)
	}
	if err := reachable(dir); err != nil {
		return "", fmt.Errorf("cache directory: %w", err)
	}
	return filepath.Join(dir, "bin"), nil
}

// download has embedded-postgres fetch and unpack a release into dir, and nothing more.
//
// The library has no call for that: its Start goes on to run initdb and postgres as the current
// user, and root cannot. So it is given a data directory that it cannot use. It clears the data
// directory before initdb, with os.RemoveAll, which is documented to refuse a path ending in ".".
// So its Start always fails, after unpacking. If postgres is there, it got so far.
func download(ctx context.Context, release, dir string) error {
	work := filepath.Join(dir, "download")
	done := make(chan error, 1)
	go func() { // the library knows no context; if ours ends, it is left to itself
		done <- embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
			Version(embeddedpostgres.PostgresVersion(release)).
			BinariesPath(dir).
			CachePath(work).
			RuntimePath(filepath.Join(work, "runtime")).
			DataPath(".").
			Port(0).
			Logger(io.Discard)).Start()
	}()
	select {
	case err := <-done:
		// the library's; to a test they are leaked goroutines
		http.DefaultClient.CloseIdleConnections()
		if _, statErr := os.Stat(filepath.Join(dir, "bin", "postgres")); statErr != nil {
			return errors.Join(err, statErr)
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := os.RemoveAll(work); err != nil {
		return fmt.Errorf("remove the archive: %w", err)
	}
	// Whatever our umask: another user runs them.
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if entry.IsDir() || mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}
