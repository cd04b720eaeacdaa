package route

import (
	"errors"
	"fmt"
)

// Config is what can be set of routes.
type Config struct {
	// Rules are rules by which events go to some sinks and not to others, or there under another
	// topic, routing key or message key: a list in YAML or JSON, or, in the YAML file, the list
	// routes (docs/routes.md). Of each sink's rules the first that matches counts. They are checked
	// at the start, and changed by a restart.
	//
	// Default none: every event goes to every sink. RELAY_ROUTES.
	Rules string `env:"RELAY_ROUTES"`

	// NoMatch is what becomes of an event that no rule of a sink matches: "deliver", or "drop",
	// which wants a rule for every sink. A sink without rules gets every event.
	//
	// Default deliver. RELAY_ROUTES_DEFAULT.
	NoMatch string `env:"RELAY_ROUTES_DEFAULT"`
}

// Values of Config.NoMatch.
const (
	Deliver = "deliver"
	Drop    = "drop"
)

// DefaultConfig returns every default.
func DefaultConfig() Config { return Config{NoMatch: Deliver} }

// Validate reports everything that is wrong whatever sinks there are, by the names the user typed.
func (c *Config) Validate() error {
	_, err := c.parse()
	return err
}

func (c *Config) parse() ([]*Rule, error) {
	rules, err := parse(c.Rules)
	if c.NoMatch != Deliver && c.NoMatch != Drop {
		err = errors.Join(err, fmt.Errorf("RELAY_ROUTES_DEFAULT=%s: want %s or %s", shown(c.NoMatch), Deliver, Drop))
	}
	return rules, err
}
