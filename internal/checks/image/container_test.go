package image

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// container is the image, started.
type container struct {
	*product.Process
	t   *testing.T
	pid int // of the program, as seen from here
}

// start runs the image as a container engine would: its entrypoint, with these arguments in place
// of CMD (none: CMD's), its environment and these variables, as its user, as process 1, without
// capabilities. Nothing can be written. The network is the host's, to reach servers on it.
func (b *image) start(t *testing.T, env map[string]string, args ...string) *container {
	t.Helper()
	uid, gid, _ := strings.Cut(b.says["USER"], ":")
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
		args = b.args
	}
	info, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer info.Close()
	flags = append(append(append(flags, "--info-fd", "3"), b.entrypoint...), args...)
	cmd := exec.Command("bwrap", flags...)
	cmd.ExtraFiles = []*os.File{write}
	c := &container{t: t, Process: product.Start(t, strings.Join(args, " "), cmd)}
	write.Close()
	var started struct {
		Pid int `json:"child-pid"`
	}
	if err := json.NewDecoder(info).Decode(&started); err != nil {
		<-c.Done()
		t.Fatalf("bwrap: %v: %s", err, c)
	}
	c.pid = started.Pid
	return c
}

// files are those of the image, relative to its root.
func (b *image) files(t *testing.T) []string {
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
func (b *image) run(t *testing.T, env map[string]string, args ...string) (text string, code int) {
	t.Helper()
	c := b.start(t, env, args...)
	code = c.Exit()
	return c.String(), code
}

// stop has the relay drain; bwrap does not pass a signal on.
func (c *container) stop() {
	c.t.Helper()
	if err := syscall.Kill(c.pid, syscall.SIGTERM); err != nil {
		c.t.Fatal(err)
	}
	if code := c.Exit(); code != 0 {
		c.t.Errorf("exit code %d after SIGTERM, want 0", code)
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
