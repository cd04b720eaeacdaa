//go:build unix

package bench

import (
	"fmt"
	"syscall"
)

// freeze stops relays where they are: a backlog is filled meanwhile, and they start on it at once.
func freeze(relays []*relayProcess) error { return signal(relays, syscall.SIGSTOP) }

// thaw lets them go on.
func thaw(relays []*relayProcess) error { return signal(relays, syscall.SIGCONT) }

func signal(relays []*relayProcess, s syscall.Signal) error {
	for _, r := range relays {
		if err := r.cmd.Process.Signal(s); err != nil {
			return fmt.Errorf("signal the relay: %w", err)
		}
	}
	return nil
}
