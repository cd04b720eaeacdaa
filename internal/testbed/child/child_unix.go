//go:build unix && !linux

package child

import (
	"os/exec"
	"syscall"
)

// prepare cannot ask for a signal on our death here: a child outlives us when we are killed.
func prepare(cmd *exec.Cmd, _ syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
}
