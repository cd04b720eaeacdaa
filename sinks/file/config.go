package file

import (
	"errors"
	"fmt"
	"os"

	"github.com/sagaz-relay/relay/relay"
)

// Config is where the lines go.
type Config struct {
	relay.Named

	// Path is the file that lines are appended to. It is made when it is not there, with mode
	// 0600 since it holds payloads (one that exists keeps its mode); its directory is not.
	// A relative path starts at the working directory. One process at a time may write it.
	//
	// Default "outbox-events.jsonl". RELAY_FILE_PATH.
	Path string `env:"RELAY_FILE_PATH"`

	// Fsync makes the relay wait until the disk has a record before it acknowledges it. Without it
	// an acknowledged record survives a crash of the relay but not one of the machine.
	//
	// Default true. RELAY_FILE_FSYNC.
	Fsync bool `env:"RELAY_FILE_FSYNC"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Path: "outbox-events.jsonl", Fsync: true} }

// Validate reports every problem at once.
func (c Config) Validate() error {
	if c.Path == "" {
		return errors.New("RELAY_FILE_PATH: want a file name")
	}
	if info, err := os.Stat(c.Path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("RELAY_FILE_PATH=%s: want a regular file, this is %s", c.Path, info.Mode().Type())
	}
	return nil
}
