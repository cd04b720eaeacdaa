package rabbitmq

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	brokeraddress "github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/tlsfiles"
	"github.com/sagaz-relay/relay/relay"
)

// Config is how to reach the broker and how to publish.
type Config struct {
	relay.Named

	// URL is where the broker is and who the relay is: amqp://user:password@host:5672/vhost, or
	// amqps:// for TLS. A reserved character in user or password is percent-encoded, and so is a
	// slash in the vhost (no path, or a bare slash, is the vhost "/").
	//
	// Default "amqp://guest:guest@localhost:5672/". RABBITMQ_URL, else BROKER_URL.
	URL string `env:"RABBITMQ_URL" fallback:"BROKER_URL" secret:"true"`

	// Hosts are further nodes of the cluster: host or host:port, several with commas between; the
	// port of RABBITMQ_URL where there is none. They take user, vhost and TLS from RABBITMQ_URL, whose
	// host is one of the nodes. Each connect tries all of them, in an order by chance, each for 10 s at
	// most. With TLS each host's certificate has to carry its own name, or that of
	// RELAY_RABBITMQ_TLS_SERVER_NAME.
	//
	// Default "". RELAY_RABBITMQ_HOSTS.
	Hosts []string `env:"RELAY_RABBITMQ_HOSTS"`

	// SASLMechanism is how the relay logs in: PLAIN, with user and password of RABBITMQ_URL, or
	// EXTERNAL, as the user that the broker finds in the certificate of RELAY_RABBITMQ_TLS_CERT_FILE
	// (its plugin rabbitmq_auth_mechanism_ssl). With EXTERNAL the URL needs neither user nor password.
	//
	// Default "PLAIN". RELAY_RABBITMQ_SASL_MECHANISM.
	SASLMechanism string `env:"RELAY_RABBITMQ_SASL_MECHANISM"`

	// Exchange is what is published to.
	//
	// Default "saga-events". RABBITMQ_EXCHANGE.
	Exchange string `env:"RABBITMQ_EXCHANGE"`

	// ExchangeType is the type that the exchange is declared with: topic, direct, fanout, headers,
	// or what a plugin brings. It must be that of the exchange if there is one already.
	//
	// Default "topic". RABBITMQ_EXCHANGE_TYPE.
	ExchangeType string `env:"RABBITMQ_EXCHANGE_TYPE"`

	// Declare makes the relay declare the exchange, durable, whenever it connects, which needs the
	// permission to configure it. With false it only looks whether it is there.
	//
	// Default true. RELAY_RABBITMQ_DECLARE.
	Declare bool `env:"RELAY_RABBITMQ_DECLARE"`

	// Window is how many messages a channel may have under way without a confirm; each lane that
	// publishes has one channel. Too small, and the lane waits for round trips; too large only
	// costs memory and longer repeats after a lost connection. In any case at most 8 MiB of bodies
	// are under way.
	//
	// Default 1000. RELAY_RABBITMQ_WINDOW.
	Window int `env:"RELAY_RABBITMQ_WINDOW"`

	// ConfirmTimeout is how long the oldest message under way may stay unconfirmed, and how long
	// one write to the network may take. Then its fate counts as unknown and it is offered again.
	// Too short, and a broker that is slow (a quorum queue that elects a leader) gets everything
	// twice; too long, and a lane notices late that its broker hangs.
	//
	// Default 30s. RELAY_RABBITMQ_CONFIRM_TIMEOUT.
	ConfirmTimeout time.Duration `env:"RELAY_RABBITMQ_CONFIRM_TIMEOUT"`

	// Properties are properties of the messages that are set from headers of the event, or to a
	// text: PROPERTY={header:NAME}, PROPERTY={header:NAME|FALLBACK} or PROPERTY=TEXT, with commas
	// between. They are correlation_id, reply_to, expiration (milliseconds), priority (0 to 255),
	// type (event_type without this) and app_id. An event without the header, or with an empty one,
	// is sent without the property. A value that RabbitMQ would close the channel for makes the
	// event refused. An expired message is gone: the event counts as sent.
	//
	// No default. RELAY_RABBITMQ_PROPERTIES.
	Properties []string `env:"RELAY_RABBITMQ_PROPERTIES"`

	// TLSCAFile holds the PEM certificates that sign the broker's. Empty means the system's. Like
	// the other TLS settings it needs an amqps URL, and it is read again at every connect.
	//
	// Default "". RELAY_RABBITMQ_TLS_CA_FILE.
	TLSCAFile string `env:"RELAY_RABBITMQ_TLS_CA_FILE"`

	// TLSCertFile is the relay's own certificate, for a broker that asks for one; TLSKeyFile must
	// be set too.
	//
	// Default "". RELAY_RABBITMQ_TLS_CERT_FILE.
	TLSCertFile string `env:"RELAY_RABBITMQ_TLS_CERT_FILE"`

	// TLSKeyFile is the private key of TLSCertFile.
	//
	// Default "". RELAY_RABBITMQ_TLS_KEY_FILE.
	TLSKeyFile string `env:"RELAY_RABBITMQ_TLS_KEY_FILE" secret:"path"`

	// TLSServerName is the name that the broker's certificate must carry, when it is not the URL's
	// host.
	//
	// Default "". RELAY_RABBITMQ_TLS_SERVER_NAME.
	TLSServerName string `env:"RELAY_RABBITMQ_TLS_SERVER_NAME"`

	// WorkerID is who we are in the broker's list of connections: "sagaz-relay <worker>".
	//
	// Default "". WORKER_ID.
	WorkerID string `env:"WORKER_ID"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		URL:            "amqp://guest:guest@localhost:5672/",
		SASLMechanism:  mechanismPlain,
		Exchange:       "saga-events",
		ExchangeType:   amqp.ExchangeTopic,
		Declare:        true,
		Window:         1000,
		ConfirmTimeout: 30 * time.Second,
	}
}

// Validate reports every problem at once, by the name of its variable. It never shows the URL.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	uri, err := c.uri()
	if err != nil {
		errs = append(errs, err)
	}
	if err == nil {
		if _, err := c.nodes(uri); err != nil {
			errs = append(errs, err)
		}
	}
	switch {
	case c.SASLMechanism != mechanismPlain && c.SASLMechanism != mechanismExternal:
		bad("RELAY_RABBITMQ_SASL_MECHANISM=%s: want PLAIN or EXTERNAL", brokeraddress.Argument(c.SASLMechanism))
	case c.SASLMechanism == mechanismExternal && err == nil && (uri.Scheme != "amqps" || c.TLSCertFile == "" && uri.CertFile == ""):
		bad("RELAY_RABBITMQ_SASL_MECHANISM=EXTERNAL: the broker takes the user from a certificate: want RABBITMQ_URL to begin with amqps://, and RELAY_RABBITMQ_TLS_CERT_FILE and RELAY_RABBITMQ_TLS_KEY_FILE to be set")
	}
	if c.Exchange == "" || len(c.Exchange) > maxShortString {
		bad("RABBITMQ_EXCHANGE=%.20s: want a name of 1 to 255 bytes", c.Exchange)
	}
	if c.ExchangeType == "" || len(c.ExchangeType) > maxShortString {
		bad("RABBITMQ_EXCHANGE_TYPE=%.20s: want topic, direct, fanout, headers or a plugin's type", c.ExchangeType)
	}
	if c.Window < 1 || c.Window > maxWindow {
		bad("RELAY_RABBITMQ_WINDOW=%d: want 1 to %d", c.Window, maxWindow)
	}
	if c.ConfirmTimeout < time.Millisecond {
		bad("RELAY_RABBITMQ_CONFIRM_TIMEOUT=%s: want at least 1ms", c.ConfirmTimeout)
	}
	if _, err := parseProperties(c.Properties); err != nil {
		bad("RELAY_RABBITMQ_PROPERTIES: %w", err)
	}
	if err == nil && uri.Scheme != "amqps" {
		if err := c.tlsFiles().Unused("RABBITMQ_URL to begin with amqps://"); err != nil {
			errs = append(errs, err)
		}
	} else if _, err := c.tls(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Ways to log in.
const (
	mechanismPlain    = "PLAIN"
	mechanismExternal = "EXTERNAL"
)

const (
	// maxShortString is the most that an AMQP short string can have (AMQP 0-9-1 specification,
	// 4.2.5.3), in bytes.
	maxShortString = 255
	// maxWindow bounds the memory of returned messages that wait to be read, and amqp091's
	// bookkeeping.
	maxWindow = 100_000
)

// uri parses the URL. The parsers' own errors quote it, password included, so none of them is
// returned.
func (c Config) uri() (amqp.URI, error) {
	if err := brokeraddress.AMQP(c.URL); err != nil {
		return amqp.URI{}, fmt.Errorf("RABBITMQ_URL (or BROKER_URL): %w", err)
	}
	uri, err := amqp.ParseURI(c.URL)
	if err != nil {
		return amqp.URI{}, errors.New("RABBITMQ_URL: want amqp://user:password@host:5672/vhost, with reserved characters in user and password percent-encoded (@ as %40, / as %2F, : as %3A)")
	}
	if uri.Port < 1 || uri.Port > 65535 {
		return amqp.URI{}, errors.New("RABBITMQ_URL: want a port from 1 to 65535")
	}
	return uri, nil
}

// vhost is where the exchange is.
func (c Config) vhost() string {
	uri, err := c.uri()
	if err != nil {
		return "/"
	}
	return uri.Vhost
}

// address names the broker in errors and logs: host, port and vhost, no user.
func address(uri amqp.URI) string {
	vhost := uri.Vhost
	if vhost != "/" {
		vhost = "/" + vhost
	}
	return uri.Scheme + "://" + net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)) + vhost
}

// tls reads the TLS files. It returns nil when none is configured, which leaves TLS to the URL's
// own parameters (cacertfile, certfile, keyfile, server_name_indication) and the system.
func (c Config) tls() (*tls.Config, error) {
	files := c.tlsFiles()
	if !files.Set() {
		return nil, nil
	}
	return files.Config()
}

func (c Config) tlsFiles() tlsfiles.Client {
	return tlsfiles.Client{
		CA:         tlsfiles.Setting{Name: "RELAY_RABBITMQ_TLS_CA_FILE", Value: c.TLSCAFile},
		Cert:       tlsfiles.Setting{Name: "RELAY_RABBITMQ_TLS_CERT_FILE", Value: c.TLSCertFile},
		Key:        tlsfiles.Setting{Name: "RELAY_RABBITMQ_TLS_KEY_FILE", Value: c.TLSKeyFile},
		ServerName: tlsfiles.Setting{Name: "RELAY_RABBITMQ_TLS_SERVER_NAME", Value: c.TLSServerName},
	}
}

// RoutingKeys: records go by routing keys, and have no topics.
func (c *Config) RoutingKeys() bool { return true }

// CheckRoute reports a routing key that AMQP does not allow.
func (c *Config) CheckRoute(r relay.Route) error {
	if len(r.RoutingKey) <= maxShortString {
		return nil
	}
	return fmt.Errorf("it has %d bytes, AMQP allows %d: want a shorter one", len(r.RoutingKey), maxShortString)
}
