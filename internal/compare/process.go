package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// process is a running contestant.
type process struct {
	*child.Process
	log string
}

// start starts the site's contestant. What it prints is kept in a file.
func (t *site) start() (*process, error) {
	ports, err := child.FreePorts(1)
	if err != nil {
		return nil, err
	}
	t.port = ports[0]
	cmd, err := t.c.command(t)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(t.logs, t.c.name+".log")
	out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer out.Close() //nolint:errcheck // the process has its own
	fmt.Fprintf(out, "\n--- %s %s\n", time.Now().UTC().Format(time.RFC3339), t.name)
	cmd.Stdout, cmd.Stderr = out, out
	p, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	return &process{p, path}, nil
}

// stop asks it to end, and does not wait longer than it takes to be polite: all figures are taken.
func (p *process) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = p.Stop(ctx, syscall.SIGTERM) // killed then
}

// ended is the error of a process that should run.
func (p *process) ended() error {
	text, _ := os.ReadFile(p.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Errorf("ended early: %w; its log %s ends with %q", p.Err(), p.log, strings.Join(lines[max(0, len(lines)-3):], " | "))
}
