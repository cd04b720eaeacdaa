package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// patience bounds what must come in the end, on a machine that runs other tests too.
const patience = time.Minute

// container is the image, started.
type container struct {
	t *testing.T
	*child.Process
	pid            int // of the program, as seen from here
	stdout, stderr product.Output
}

// start runs the image as a container engine would: its entrypoint, with these arguments in place of CMD (none: CMD's), its environment and
// these variables, as its user, as process 1, without capabilities. Nothing can be written. The network is the host's, to reach servers on it.
func (b *built) start(t *testing.T, env map[string]string, args ...string) *container {
	t.Helper()
	uid, gid, ok := strings.Cut(b.user, ":")
	if !ok {
		t.Fatalf("USER %s: want uid:gid", b.user)
	}
	flags := []string{
		"--unshare-user", "--uid", uid, "--gid", gid, "--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts", "--hostname", "pod-1",
		"--cap-drop", "ALL", "--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev",
	}
	for _, name := range b.files(t) {
		flags = append(flags, "--ro-bind", filepath.Join(b.root, name), "/"+name)
	}
	for _, name := range []string{"/etc/hosts", "/etc/resolv.conf"} { // which an engine adds
		flags = append(flags, "--ro-bind-try", name, name)
	}
	for at, here := range b.mounts {
		flags = append(flags, "--bind", here, at)
	}
	flags = append(flags, "--remount-ro", "/", "--chdir", "/", "--clearenv")
	for name, value := range b.env {
		flags = append(flags, "--setenv", name, value)
	}
	for name, value := range env {
		flags = append(flags, "--setenv", name, value)
	}
	if len(args) == 0 {
		args = b.cmd
	}
	info, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer info.Close()
	flags = append(append(append(flags, "--info-fd", "3"), b.entrypoint...), args...)
	c := &container{t: t}
	cmd := exec.Command("bwrap", flags...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &c.stdout, &c.stderr, []*os.File{write}
	c.Process, err = child.Start(cmd, syscall.SIGKILL)
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.Running() {
			_ = c.Kill() // its last log below tells more
		}
		if t.Failed() {
			t.Logf("sagaz-relay %s:\n%s%s", strings.Join(args, " "), c.stdout.String(), c.stderr.String())
		}
	})
	var started struct {
		Pid int `json:"child-pid"`
	}
	if err := json.NewDecoder(info).Decode(&started); err != nil {
		<-c.Done()
		t.Fatalf("bwrap: %v: %s", err, c.stderr.String())
	}
	c.pid = started.Pid
	return c
}

// files are those of the image, relative to its root.
func (b *built) files(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(b.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(b.root, path)
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// run is start, to the end; it returns what was written and the exit code.
func (b *built) run(t *testing.T, env map[string]string, args ...string) (text string, code int) {
	t.Helper()
	c := b.start(t, env, args...)
	code = c.end()
	return c.stdout.String() + c.stderr.String(), code
}

// end waits for the end and returns the exit code.
func (c *container) end() int {
	c.t.Helper()
	select {
	case <-c.Done():
	case <-time.After(patience):
		c.t.Fatalf("it still runs after %s", patience)
	}
	var exit *exec.ExitError
	switch {
	case c.Err() == nil:
		return 0
	case errors.As(c.Err(), &exit):
		return exit.ExitCode()
	}
	c.t.Fatal(c.Err())
	return -1
}

// stop sends the signal that the image wants.
func (c *container) stop(signal string) {
	c.t.Helper()
	if signal != "SIGTERM" {
		c.t.Fatalf("STOPSIGNAL %s: the relay drains on SIGTERM", signal)
	}
	if err := syscall.Kill(c.pid, syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	if code := c.end(); code != 0 {
		c.t.Errorf("exit code %d after %s, want 0", code, signal)
	}
}

// process returns a field of /proc/PID/status.
func (c *container) process(field string) string {
	c.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid))
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
