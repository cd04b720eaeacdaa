package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/variables"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/admin"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/relay/route"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/traces"
	"github.com/sagaz-relay/relay/relay/watch"
)

// programConfig is what is set of the program itself, besides its rooms.
type programConfig struct {
	// Sinks lists the brokers that every event goes to: kafka, rabbitmq, file, stdout, webhook, nats,
	// sqs, sns, redis, or several with commas between. Where it is not set, a relay does not start (exit
	// code 2) if events went elsewhere before, or may have: another worker's sent rows, an address
	// of another broker.
	//
	// Default kafka. BROKER_TYPE.
	Sinks []string `env:"BROKER_TYPE"`

	// NamedSinks lists sinks with names of their own, several of one kind where that is wanted, each
	// with its own settings: orders-kafka has RELAY_SINK_ORDERS_KAFKA_KIND (kafka, say),
	// RELAY_SINK_ORDERS_KAFKA_BOOTSTRAP_SERVERS and so on. A name has 1 to 40 lower-case letters,
	// digits and hyphens. BROKER_TYPE may name further sinks; where it is not set, these are all.
	// See "Named sinks" in docs/settings.md.
	//
	// Default none. RELAY_SINKS.
	NamedSinks []string `env:"RELAY_SINKS"`

	// MetricsPort is the port of /metrics, /health/live, /health/ready, the status page / and
	// /status.json on all addresses; 0 serves nothing.
	//
	// Default 8000. METRICS_PORT.
	MetricsPort int `env:"METRICS_PORT"`

	// HTTPAddr binds the same to one address, such as 127.0.0.1:8000; METRICS_PORT is ignored then.
	//
	// Default: all addresses, METRICS_PORT. RELAY_HTTP_ADDR.
	HTTPAddr string `env:"RELAY_HTTP_ADDR" secret:"address"`

	// LogLevel is DEBUG, INFO, WARNING or ERROR.
	//
	// Default INFO. LOG_LEVEL.
	LogLevel string `env:"LOG_LEVEL"`

	// SecretsDir is a directory whose files are settings, named as the variables are: DATABASE_URL,
	// for one. It may be a mounted secret with optional keys: a missing file is a setting that is
	// not set. The environment goes first. It is read from the environment alone.
	//
	// Default none. RELAY_SECRETS_DIR.
	SecretsDir string `env:"RELAY_SECRETS_DIR"`
}

func defaultProgramConfig() programConfig {
	return programConfig{Sinks: []string{"kafka"}, MetricsPort: 8000, LogLevel: "INFO"}
}

// settings are all settings of one process.
type settings struct {
	program programConfig
	admin   admin.Config
	relay   engine.Config
	encode  encode.Config
	route   route.Config
	watch   watch.Config
	cdc     cdc.Config
	store   store.Config
	traces  traces.Config
	sinks   map[string]any       // by name: every sink's config, also of those kinds that are not used
	named   map[string]*sinkKind // by name: the kinds of the sinks in RELAY_SINKS

	wrapSink  func(relay.Sink) relay.Sink   // by which bench and demo watch the sinks; may be nil
	wrapStore func(relay.Store) relay.Store // by which bench leaves the marks out; may be nil

	// by a setting's first name: where its value comes from; without those that have their default
	sources map[string]string
	errs    []error // about the variables themselves
	// warnings are about variables that are called almost as a setting is.
	warnings []string
}

// configError is a setting that cannot be used.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }

// loadSettings reads the variables. Its error is only about what makes them unreadable; each
// command validates what it uses.
func loadSettings(lookup func(string) (string, bool), environ []string, configFile string) (*settings, error) {
	s := defaultSettings()
	host, err := os.Hostname()
	if err == nil {
		s.relay.WorkerID, s.store.Owner = host, host
	}
	v := variables.New(lookup, configFile)
	for _, config := range s.configs() {
		v.Fill(config)
	}
	s.nameSinks(v)
	v.Strangers(environ)
	redacted.Know(s.secrets())
	s.errs, s.sources, s.warnings = append(v.Errs, s.errs...), v.Sources, v.Typos(environ)
	if len(s.errs) == 0 && s.cdc.DatabaseURL != "" {
		if err := resolved(s.cdc.DatabaseURL); err != nil {
			s.errs = append(s.errs, err)
		}
	}
	if len(s.errs) > 0 {
		return nil, configError{errors.Join(s.errs...)}
	}
	return s, nil
}

// resolved checks the connection string together with PGHOST and the like, a service file and a
// password file. The parser's own error quotes the string.
func resolved(databaseURL string) error {
	cfg, err := pgconn.ParseConfig(databaseURL)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: cannot be read%s: want postgresql://user:password@host:5432/database", parseCause(err))
	}
	hosts := []string{cfg.Host}
	for _, f := range cfg.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	if err := address.Resolved(hosts, cfg.User, cfg.Database); err != nil {
		return fmt.Errorf("DATABASE_URL, with PGHOST and its kin and the service file: %w", err)
	}
	return nil
}

// parseCause names the part that the parser did not take, where that shows nothing of the string.
func parseCause(err error) string {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return ": a file that it names: " + path.Err.Error()
	}
	for _, part := range []string{"sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs", "connect_timeout", "service", "channel_binding", "require_auth", "min_protocol_version", "port"} {
		if strings.Contains(err.Error(), "): "+part) || strings.Contains(err.Error(), "invalid "+part) || strings.Contains(err.Error(), part+" is invalid") || strings.Contains(err.Error(), "unknown "+part) {
			return " (" + part + ")"
		}
	}
	return ""
}

// database validates what every command that talks to the database needs.
func (s *settings) database() error {
	if s.cdc.DatabaseURL == "" {
		return configError{errors.New("DATABASE_URL: not set: want postgresql://user:password@host:5432/database")}
	}
	if err := errors.Join(s.cdc.Validate(), s.store.Validate()); err != nil {
		return configError{err}
	}
	return nil
}

// set is how the table is divided as the settings have it; see store.SetOf.
func (s *settings) set() relay.Set {
	return relay.Set{Slot: s.store.Slot, Publication: s.store.Publication, Shards: s.store.Shards}
}

// connect opens a connection for a command; see store.Connect.
func (s *settings) connect(ctx context.Context, purpose string) (*pgx.Conn, error) {
	return store.Connect(ctx, s.cdc.DatabaseURL, purpose)
}

// all validates everything that run uses, and reports every problem at once.
func (s *settings) all() error {
	var errs []error
	errs = append(errs, s.admin.Validate(), s.relay.Validate(), s.encode.Validate(), s.watch.Validate(), s.cdc.Validate(), s.traces.Validate())
	if s.cdc.DatabaseURL != "" { // reported once is enough
		errs = append(errs, s.store.Validate())
	}
	if s.program.MetricsPort < 0 || s.program.MetricsPort > 65535 {
		errs = append(errs, fmt.Errorf("METRICS_PORT=%d: want a port, or 0 for none", s.program.MetricsPort))
	}
	if s.program.HTTPAddr != "" {
		host, port, err := net.SplitHostPort(s.program.HTTPAddr)
		if err == nil && port != "0" {
			err = address.Port(port)
		}
		if err = errors.Join(err, address.Host(host)); err != nil {
			errs = append(errs, fmt.Errorf("RELAY_HTTP_ADDR=%s: want host:port, such as 127.0.0.1:8000, or :8000 for all addresses", address.Argument(s.program.HTTPAddr)))
		}
	}
	if _, err := parseLevel(s.program.LogLevel); err != nil {
		errs = append(errs, err)
	}
	byDefault, wrongBroker := s.sinksByDefault()
	s.relay.SinksByDefault, s.relay.BrokerTypes = byDefault, sinkNames()
	if wrongBroker != nil {
		errs = append(errs, wrongBroker)
	}
	errs = append(errs, s.checkSinks(wrongBroker != nil)...)
	if _, err := s.routes(); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return configError{err}
	}
	return nil
}
