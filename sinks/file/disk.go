package file

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hashicorp/go-hclog"
)

// handle is what we need of an *os.File.
type handle interface {
	io.ReaderAt
	io.WriteCloser
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	Sync() error
}

// disk is a target on a file. It is not safe for concurrent use.
type disk struct {
	setting string // the variable that names the file
	path    string
	fsync   bool
	log     hclog.Logger
	open    func(path string) (handle, error)

	f    handle // nil: to be opened before the next write
	size int64  // Invariant: the file has size bytes, and the last of them ends a line
}

// newFileMode is for a file that we make: it holds payloads. One that exists keeps its mode.
const newFileMode = 0o600

// openFile opens for reading too, since a torn tail must be looked for.
func openFile(path string) (handle, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return wrap(f, err)
	}
	f, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, newFileMode)
	if err != nil {
		return nil, err
	}
	// A file's name is its directory's content: without this sync the machine could come back
	// without the file, synced lines and all.
	if err := syncDir(filepath.Dir(path)); err != nil {
		_ = f.Close() // the error to report is the sync's
		return nil, err
	}
	return file{f}, nil
}

func wrap(f *os.File, err error) (handle, error) {
	if err != nil {
		return nil, err
	}
	return file{f}, nil
}

// file replaces Sync by what is cheapest for appended data.
type file struct{ *os.File }

func (f file) Sync() error { return dataSync(f.File) }

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

func (d *disk) check() error {
	d.leave()
	if d.f != nil {
		return nil
	}
	return d.reopen()
}

// leave closes a file that was removed or renamed. What is written from now on belongs to the path.
func (d *disk) leave() {
	if d.f == nil {
		return
	}
	named, err := os.Stat(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return // we may not look, which means nothing for the file
	}
	if err == nil {
		if open, err := d.f.Stat(); err != nil || os.SameFile(named, open) {
			return
		}
	}
	d.log.Warn("the outbox file was removed or renamed, opening it again", "path", d.path)
	_ = d.f.Close() // all that we acknowledged is synced
	d.f = nil
}

func (d *disk) close() error {
	if d.f == nil {
		return nil
	}
	err := d.f.Close()
	d.f = nil
	if err != nil {
		return fmt.Errorf("close %s: %w", d.path, err)
	}
	return nil
}

// reopen opens the file and cuts off what a crash left of a last line.
func (d *disk) reopen() error {
	f, err := d.open(d.path)
	if err != nil {
		return fmt.Errorf("open outbox file (%s): %w", d.setting, err)
	}
	size, err := d.repair(f)
	if err != nil {
		_ = f.Close() // the error to report is the repair's
		return err
	}
	d.f, d.size = f, size
	return nil
}

// repair truncates a last line without newline and returns the size that remains. Such a line was
// never acknowledged: an acknowledgement comes after the sync of the whole line. A tail that is not
// ours is left alone.
func (d *disk) repair(f handle) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", d.path, err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("open %s: want a regular file, this is %s", d.path, info.Mode().Type())
	}
	size := info.Size()
	whole, err := endOfLastLine(f, size)
	if err != nil {
		return 0, fmt.Errorf("look at the end of %s: %w", d.path, err)
	}
	if whole == size {
		return size, nil
	}
	tail := make([]byte, min(size-whole, 64))
	if _, err := f.ReadAt(tail, whole); err != nil {
		return 0, fmt.Errorf("look at the end of %s: %w", d.path, err)
	}
	// Zeros are what some file systems show of a write that a power cut interrupted.
	ours := bytes.Trim(tail, "\x00")
	if n := min(len(ours), len(linePrefix)); string(ours[:n]) != linePrefix[:n] {
		return 0, fmt.Errorf("open %s: its last line has no end and was not written by sagaz-relay: choose another %s", d.path, d.setting)
	}
	if err := f.Truncate(whole); err != nil {
		return 0, fmt.Errorf("cut a torn line off %s: %w", d.path, err)
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("cut a torn line off %s: %w", d.path, err)
	}
	d.log.Warn("torn last line cut off, its record was not acknowledged and comes again", "path", d.path, "bytes", size-whole)
	return whole, nil
}

// endOfLastLine returns the position after the last newline, 0 in a file without one.
func endOfLastLine(f io.ReaderAt, size int64) (int64, error) {
	chunk := make([]byte, 64<<10)
	for end := size; end > 0; {
		start := max(0, end-int64(len(chunk)))
		part := chunk[:end-start]
		if _, err := f.ReadAt(part, start); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return start + int64(i) + 1, nil
		}
		end = start
	}
	return 0, nil
}

var errRemoved = errors.New("the file was removed while it was written")

// commit appends the lines with one write and one sync. When that fails the file is cut back to
// where it was. It is opened again next time, which also repairs what could not be cut back now.
//
// A file that was renamed, as log rotation does, is left for a new one. One that is removed while
// we write takes the lines with it, so they are not acknowledged.
func (d *disk) commit(lines []byte) error {
	d.leave()
	if d.f == nil {
		if err := d.reopen(); err != nil {
			return err
		}
	}
	n, err := d.f.Write(lines)
	switch {
	case err == nil && n < len(lines):
		err = io.ErrShortWrite
	case err == nil && d.fsync:
		err = d.f.Sync()
	}
	if err == nil {
		if info, statErr := d.f.Stat(); statErr == nil && removed(info) {
			err = errRemoved
		}
	}
	if err == nil {
		d.size += int64(len(lines))
		return nil
	}
	err = fmt.Errorf("append to %s: %w", d.path, err)
	// Someone else's lines are not ours to cut off.
	if info, statErr := d.f.Stat(); statErr == nil && info.Size() == d.size+int64(n) {
		if cutErr := d.f.Truncate(d.size); cutErr != nil {
			err = fmt.Errorf("%w (and cutting the half-written lines off: %w)", err, cutErr)
		}
	}
	_ = d.f.Close() // the error to report is the write's
	d.f = nil
	return err
}
