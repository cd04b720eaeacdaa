package file

import (
	"errors"
	"os"
	"syscall"
)

// dataSync waits until the file's data, and of its metadata the size, are on disk. It saves the
// journal write for the modification time that fsync would cost.
func dataSync(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var syncErr error
	err = conn.Control(func(fd uintptr) {
		for {
			if syncErr = syscall.Fdatasync(int(fd)); !errors.Is(syncErr, syscall.EINTR) {
				return
			}
		}
	})
	return errors.Join(err, os.NewSyscallError("fdatasync", syncErr))
}

// removed reports whether no name leads to the open file any more, so that it goes with its last
// handle.
func removed(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 0
}
