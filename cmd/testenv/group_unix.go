//go:build unix

package main

import (
	"os"
	"syscall"
)

func signalGroup(pid int, sig os.Signal) {
	if s, ok := sig.(syscall.Signal); ok {
		syscall.Kill(-pid, s)
	}
}

// endGroup ends what the command may have left behind in its group.
func endGroup(pid int) { syscall.Kill(-pid, syscall.SIGKILL) }
