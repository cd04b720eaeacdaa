//go:build unix

package pgserver

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

const sigStop = syscall.SIGSTOP

// unprivileged is the user that PostgreSQL runs as when we are root: nobody, or 65534 where that
// has no name.
func unprivileged() (uid, gid int) {
	uid, gid = 65534, 65534
	if u, err := user.Lookup("nobody"); err == nil {
		if id, err := strconv.Atoi(u.Uid); err == nil && id > 0 {
			uid = id
		}
		if id, err := strconv.Atoi(u.Gid); err == nil && id > 0 {
			gid = id
		}
	}
	return uid, gid
}

func root() bool { return os.Geteuid() == 0 }

func runAsUnprivileged(cmd *exec.Cmd) {
	if !root() {
		return
	}
	uid, gid := unprivileged()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

// giveTo makes the user that PostgreSQL runs as the owner of path.
func giveTo(path string) error {
	if !root() {
		return nil
	}
	uid, gid := unprivileged()
	return os.Chown(path, uid, gid)
}

// reachable returns an error for a directory above path that is closed to the user that PostgreSQL
// runs as.
func reachable(path string) error {
	if !root() {
		return nil
	}
	uid, gid := unprivileged()
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		enter := os.FileMode(0o001)
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) == uid {
			enter = 0o100
		} else if ok && int(stat.Gid) == gid {
			enter = 0o010
		}
		if info.IsDir() && info.Mode()&enter == 0 {
			return fmt.Errorf("PostgreSQL does not run as root, and uid %d cannot enter %s (mode %v) on the way to %s: "+
				"choose another place, such as one below /var/lib or /tmp (TMPDIR, when none was chosen)", uid, dir, info.Mode().Perm(), path)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}
