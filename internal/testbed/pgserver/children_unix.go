//go:build unix && !linux

package pgserver

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

type proc struct{ pid int }

// childrenOf lists the processes whose parent is pid.
func childrenOf(pid int) []proc {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return nil
	}
	var children []proc
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == strconv.Itoa(pid) {
			if id, err := strconv.Atoi(f[0]); err == nil {
				children = append(children, proc{id})
			}
		}
	}
	return children
}

func (p proc) alive() bool { return syscall.Kill(p.pid, 0) == nil }
func (p proc) kill()       { syscall.Kill(p.pid, syscall.SIGKILL) }
