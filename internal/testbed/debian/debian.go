// Package debian installs what the tests need and the machine lacks, where it may.
package debian

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// Missing is the error for a program that is not there; it has the command to run.
func Missing(program string, packages ...string) error {
	return fmt.Errorf("%s is not installed; on Debian: apt-get update && apt-get install -y --no-install-recommends %s",
		program, strings.Join(packages, " "))
}

var mu sync.Mutex // apt-get waits for another process's lock, but two calls of ours need not

// Install installs packages when this is Debian (or Ubuntu) and we are root. Otherwise the error is
// the line to run. Services that come with them are not started. log gets one line for a person.
func Install(ctx context.Context, log io.Writer, packages ...string) error {
	if len(packages) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return Missing(strings.Join(packages, ", "), packages...)
	}
	mu.Lock()
	defer mu.Unlock()

	// A package that brings a service starts it while being installed, unless this file forbids it
	// (101).
	const policy = "/usr/sbin/policy-rc.d"
	if f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755); err == nil {
		defer os.Remove(policy)
		_, err = f.WriteString("#!/bin/sh\nexit 101\n")
		if closeErr := f.Close(); err != nil || closeErr != nil {
			return fmt.Errorf("write %s: %w", policy, err)
		}
	} else if !os.IsExist(err) {
		return fmt.Errorf("keep services from starting while they are installed: %w", err)
	}

	if log != nil {
		fmt.Fprintf(log, "installing %s with apt-get\n", strings.Join(packages, ", "))
	}
	for _, args := range [][]string{
		{"update", "-qq"},
		append([]string{"install", "-y", "-qq", "--no-install-recommends"}, packages...),
	} {
		args = append([]string{"-o", "DPkg::Lock::Timeout=600"}, args...)
		apt := exec.CommandContext(ctx, "apt-get", args...)
		apt.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := apt.CombinedOutput(); err != nil {
			lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
		}
	}
	return nil
}
