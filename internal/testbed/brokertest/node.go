package brokertest

import (
	"context"
	"syscall"

	"github.com/sagaz-relay/relay/internal/testbed/child"
)

// node is the server of a broker: a process, or a container; neither when somebody else has started
// it.
type node struct {
	process   *child.Process
	container *container
}

// Stop asks the broker to shut down and waits for it. When ctx ends first, it is killed.
func (n *node) Stop(ctx context.Context) error {
	switch {
	case n.container != nil:
		return n.container.stop(ctx)
	case n.process != nil:
		return n.process.Stop(ctx, syscall.SIGTERM)
	}
	return nil
}

// Kill ends the broker with SIGKILL.
func (n *node) Kill() error {
	switch {
	case n.container != nil:
		return n.container.kill()
	case n.process != nil:
		return n.process.Kill()
	}
	return nil
}

// Running reports whether the process that was started for the broker runs.
func (n *node) Running() bool { return n.process != nil && n.process.Running() }

// PID is the process that was started for the broker, whose children belong to it; 0 when it runs in
// a container, or somebody else has started it.
func (n *node) PID() int {
	if n.process == nil {
		return 0
	}
	return n.process.PID()
}

// remove kills the broker if it still runs. A container is gone then.
func (n *node) remove() error {
	if n.container != nil {
		return n.container.remove()
	}
	return n.Kill()
}
