// Package cache keeps downloaded server binaries: directories that are filled once, by whichever
// process comes first.
package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// DefaultRoot is where downloads of this project go: the user's cache directory.
//
// For root it is /var/cache/sagaz-relay, because PostgreSQL runs as another user then, and /root is
// closed to others.
func DefaultRoot() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/sagaz-relay", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w (set HOME or XDG_CACHE_HOME)", err)
	}
	return filepath.Join(dir, "sagaz-relay"), nil
}

// Fill returns root/name. When it is not there yet, fill gets a new empty directory next to it,
// which becomes root/name once fill returns without error.
//
// Any number of goroutines and processes may ask at once: one fills, the others wait for it. The
// rename makes a directory that exists a complete one, also after a kill half-way; the lock only
// saves the others from doing the same work.
func Fill(ctx context.Context, root, name string, fill func(dir string) error) (string, error) {
	path := filepath.Join(root, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("create cache directory: %w", err)
	}
	unlock, err := Lock(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil // filled while we waited
	}
	tmp, err := os.MkdirTemp(root, name+".tmp-*")
	if err != nil {
		return "", fmt.Errorf("create cache directory: %w", err)
	}
	defer os.RemoveAll(tmp)
	// MkdirTemp makes it 0700, but PostgreSQL runs as another user
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", fmt.Errorf("open cache directory to other users: %w", err)
	}
	if err := fill(tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", fmt.Errorf("put the filled cache directory in place: %w", err)
	}
	return path, nil
}

// Lock waits for an exclusive lock on path, which ends with the process at the latest.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		err := tryLock(f)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, errLocked) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the process that fills %s: %w", path, context.Cause(ctx))
		}
	}
}

var errLocked = errors.New("locked by another process")
