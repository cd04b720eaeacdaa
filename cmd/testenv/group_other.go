//go:build !unix

package main

import "os"

// signalGroup can only end the command here: there are no other signals.
func signalGroup(pid int, _ os.Signal) { endGroup(pid) }

func endGroup(pid int) {
	if p, err := os.FindProcess(pid); err == nil {
		p.Kill()
	}
}
