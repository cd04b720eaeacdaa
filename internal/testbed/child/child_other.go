//go:build !unix

package child

import (
	"os/exec"
	"syscall"
)

func prepare(*exec.Cmd, syscall.Signal) {}
