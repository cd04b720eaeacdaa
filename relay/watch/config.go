package watch

// Config is what can be set of those that watch the engine.
type Config struct {
	// SagaRules is what event types mean for their saga, for the outbox_saga_ metrics:
	// EVENT_TYPE=OUTCOME with commas between. The first rule that matches counts. In a type {saga}
	// and {step} match a part without a dot, and * any text; an outcome is started, step,
	// step_failed, compensated, compensation_failed, completed or failed. A saga is named by the
	// row's header saga_name, else by {saga}, else by its aggregate_type. Without a rule for
	// started, the first event that is seen starts a saga. "none" counts no sagas
	// (docs/metrics.md).
	//
	// Default: the library's event types. RELAY_SAGA_RULES.
	SagaRules []string `env:"RELAY_SAGA_RULES"`
}

// DefaultConfig returns every default.
func DefaultConfig() Config { return Config{SagaRules: DefaultSagaRules()} }

// Validate reports everything that is wrong at once, by the names the user typed.
func (c *Config) Validate() error {
	_, err := parseSagaRules(c.SagaRules)
	return err
}
