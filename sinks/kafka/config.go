package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/tlsfiles"
	"github.com/sagaz-relay/relay/relay"
)

// Config is how to reach the brokers and how to write to them. Each field names its variable in its
// tag; fallback is read when that is unset, secret values are never shown.
type Config struct {
	relay.Named

	// Brokers lists addresses of some brokers of the cluster, host:port each (port 9092 when left
	// out); the others are learnt from them. One that is down is passed over, so name two or three.
	//
	// No default. KAFKA_BOOTSTRAP_SERVERS, comma-separated; when that is unset BROKER_URL, which
	// may begin with kafka://.
	Brokers []string `env:"KAFKA_BOOTSTRAP_SERVERS" fallback:"BROKER_URL" secret:"address"`

	// ClientID is the name under which brokers log this client and count its quota.
	//
	// Default sagaz-relay. KAFKA_CLIENT_ID.
	ClientID string `env:"KAFKA_CLIENT_ID"`

	// SecurityProtocol is what the brokers' listener speaks: PLAINTEXT, SSL, SASL_PLAINTEXT or
	// SASL_SSL. The SASL_ ones need SASLMechanism.
	//
	// Default PLAINTEXT. KAFKA_SECURITY_PROTOCOL.
	SecurityProtocol string `env:"KAFKA_SECURITY_PROTOCOL"`

	// SASLMechanism is how the user proves itself: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. PLAIN
	// over SASL_PLAINTEXT puts the password on the network.
	//
	// No default. KAFKA_SASL_MECHANISM.
	SASLMechanism string `env:"KAFKA_SASL_MECHANISM"`

	// SASLUsername is the user to log in as.
	//
	// No default. KAFKA_SASL_USERNAME.
	SASLUsername string `env:"KAFKA_SASL_USERNAME"`

	// SASLPassword is that user's password.
	//
	// No default. KAFKA_SASL_PASSWORD.
	SASLPassword string `env:"KAFKA_SASL_PASSWORD" secret:"true"`

	// TLSCAFile holds the certificates (PEM) that brokers' certificates are checked against,
	// instead of the system's. Read again at every connection, so that a rotated file needs no
	// restart.
	//
	// Default: the system's. RELAY_KAFKA_TLS_CA_FILE.
	TLSCAFile string `env:"RELAY_KAFKA_TLS_CA_FILE"`

	// TLSCertFile is the certificate (PEM) to show to brokers that want one (ssl.client.auth), with
	// intermediates below it; TLSKeyFile must be set too. Read again at every connection.
	//
	// No default. RELAY_KAFKA_TLS_CERT_FILE.
	TLSCertFile string `env:"RELAY_KAFKA_TLS_CERT_FILE"`

	// TLSKeyFile is the private key (PEM, not encrypted) of TLSCertFile.
	//
	// No default. RELAY_KAFKA_TLS_KEY_FILE.
	TLSKeyFile string `env:"RELAY_KAFKA_TLS_KEY_FILE" secret:"path"`

	// TLSServerName is the name expected in brokers' certificates, where that is not the host name
	// under which they are reached (a port-forward, an address by number).
	//
	// Default: each broker's host name. RELAY_KAFKA_TLS_SERVER_NAME.
	TLSServerName string `env:"RELAY_KAFKA_TLS_SERVER_NAME"`

	// Compression is the codec for record batches: none, gzip, snappy, lz4 or zstd. It spends the
	// relay's CPU to save network and the brokers' disks; consumers read any of them.
	//
	// Default none. RELAY_KAFKA_COMPRESSION.
	Compression string `env:"RELAY_KAFKA_COMPRESSION"`

	// BatchBytes is how large one batch for one partition may grow, before compression. Too little
	// costs requests; more than the topics' max.message.bytes costs a refused request and a second
	// try. A single larger record travels alone. The default is below the brokers' default limit,
	// 1048588.
	//
	// Default 1000000. RELAY_KAFKA_BATCH_BYTES.
	BatchBytes int `env:"RELAY_KAFKA_BATCH_BYTES"`

	// Idempotence lets the brokers recognise a late copy of a request, so that it is not appended
	// twice. Switch it off only for a broker that cannot; where it is merely not permitted the sink
	// notices, warns and goes on without.
	//
	// Default true. RELAY_KAFKA_IDEMPOTENCE.
	Idempotence bool `env:"RELAY_KAFKA_IDEMPOTENCE"`

	// PartitionHeader is the header whose number is the partition that a record goes to, from 0 on.
	// A record without it goes by its key as ever. A number that the topic does not have, or that is
	// none, makes the record refused. Order per key holds within a partition: let all events of a
	// key have the same number.
	//
	// No default. RELAY_KAFKA_PARTITION_HEADER.
	PartitionHeader string `env:"RELAY_KAFKA_PARTITION_HEADER"`

	// ReadBack makes a relay that takes over from one that died read what that one had sent last and
	// not marked, so that it is not sent twice. It needs READ on the topics. Without that right, or
	// where it takes too long, the events are sent again, and so they are where another Kafka sink
	// writes to the same cluster, or to one whose id is not known. See relay/DESIGN.md.
	//
	// Default true. RELAY_KAFKA_READ_BACK.
	ReadBack bool `env:"RELAY_KAFKA_READ_BACK"`

	// TopicWait is how long to wait for a topic that does not exist to be created, by the broker
	// (auto.create.topics.enable) or by someone else, before its records are refused as
	// unknown_topic. It is waited once; after that a topic that is still not there is refused at
	// once. Until then the lane waits.
	//
	// Default 5s. RELAY_KAFKA_TOPIC_WAIT.
	TopicWait time.Duration `env:"RELAY_KAFKA_TOPIC_WAIT"`

	// RequestTimeout is how long to wait for a broker's answer before the connection is given up.
	// The broker is asked to give up on slow replicas after two thirds of it, so that its answer
	// comes first. Too little turns a slow broker into redeliveries; too much keeps lanes waiting
	// for a dead one.
	//
	// Default 15s. RELAY_KAFKA_REQUEST_TIMEOUT.
	RequestTimeout time.Duration `env:"RELAY_KAFKA_REQUEST_TIMEOUT"`

	// DialTimeout is how long opening a connection may take, with TLS and login.
	//
	// Default 5s. RELAY_KAFKA_DIAL_TIMEOUT.
	DialTimeout time.Duration `env:"RELAY_KAFKA_DIAL_TIMEOUT"`

	// MetadataTTL is how old the sink's metadata of a topic may get before it is asked for again.
	// Errors cause further questions. Partitions added to a topic are used after that time at the
	// latest.
	//
	// Default 30s. RELAY_KAFKA_METADATA_TTL.
	MetadataTTL time.Duration `env:"RELAY_KAFKA_METADATA_TTL"`

	// dial opens the TCP connection; tests put a worse network there.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// DefaultConfig returns the defaults. Brokers must be set.
func DefaultConfig() Config {
	return Config{
		ClientID:         "sagaz-relay",
		SecurityProtocol: protocolPlaintext,
		Compression:      "none",
		BatchBytes:       1_000_000,
		Idempotence:      true,
		ReadBack:         true,
		TopicWait:        5 * time.Second,
		RequestTimeout:   15 * time.Second,
		DialTimeout:      5 * time.Second,
		MetadataTTL:      30 * time.Second,
	}
}

const (
	protocolPlaintext     = "PLAINTEXT"
	protocolSSL           = "SSL"
	protocolSASLPlaintext = "SASL_PLAINTEXT"
	protocolSASLSSL       = "SASL_SSL"

	mechanismPlain    = "PLAIN"
	mechanismSCRAM256 = "SCRAM-SHA-256"
	mechanismSCRAM512 = "SCRAM-SHA-512"
)

// maxRecord is the largest record where the topic's limit is not known. A broker closes the
// connection on a request above socket.request.max.bytes (100 MiB unless changed) without an
// answer, and other partitions' records must fit into the request, too.
const maxRecord = 96 << 20

// Validate reports everything that is wrong, by the variables' names. It does not look at files.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if _, err := c.addresses(); err != nil {
		errs = append(errs, err)
	}
	if !slices.Contains([]string{protocolPlaintext, protocolSSL, protocolSASLPlaintext, protocolSASLSSL}, c.SecurityProtocol) {
		bad("KAFKA_SECURITY_PROTOCOL=%s: want PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL", c.SecurityProtocol)
	}
	sasl := strings.HasPrefix(c.SecurityProtocol, "SASL_")
	switch c.SASLMechanism {
	case "":
		if sasl {
			bad("KAFKA_SECURITY_PROTOCOL=%s needs KAFKA_SASL_MECHANISM: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.SecurityProtocol)
		} else if c.SASLUsername != "" || c.SASLPassword != "" {
			bad("KAFKA_SASL_USERNAME or KAFKA_SASL_PASSWORD is set without KAFKA_SASL_MECHANISM: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, and KAFKA_SECURITY_PROTOCOL=SASL_SSL or SASL_PLAINTEXT")
		}
	case mechanismPlain, mechanismSCRAM256, mechanismSCRAM512:
		if !sasl {
			bad("KAFKA_SASL_MECHANISM=%s with KAFKA_SECURITY_PROTOCOL=%s would not log in: want KAFKA_SECURITY_PROTOCOL=SASL_SSL (with TLS) or SASL_PLAINTEXT (without)", c.SASLMechanism, c.SecurityProtocol)
		}
		if c.SASLUsername == "" {
			bad("KAFKA_SASL_USERNAME is not set: KAFKA_SASL_MECHANISM=%s needs it", c.SASLMechanism)
		}
		if c.SASLPassword == "" {
			bad("KAFKA_SASL_PASSWORD is not set: KAFKA_SASL_MECHANISM=%s needs it", c.SASLMechanism)
		}
	default:
		bad("KAFKA_SASL_MECHANISM=%s: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.SASLMechanism)
	}
	if !c.tls() {
		if err := c.tlsFiles().Unused("KAFKA_SECURITY_PROTOCOL to be SSL or SASL_SSL"); err != nil {
			errs = append(errs, err)
		}
	}
	if err := tlsfiles.Both(c.tlsFiles().Cert, c.tlsFiles().Key); err != nil {
		errs = append(errs, err)
	}
	if _, ok := codecs[c.Compression]; !ok {
		bad("RELAY_KAFKA_COMPRESSION=%s: want none, gzip, snappy, lz4 or zstd", c.Compression)
	}
	if c.BatchBytes < 1024 || c.BatchBytes > 64<<20 {
		bad("RELAY_KAFKA_BATCH_BYTES=%d: want 1024 to %d, and no more than the topics' max.message.bytes", c.BatchBytes, 64<<20)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		least time.Duration
	}{
		{"RELAY_KAFKA_TOPIC_WAIT", c.TopicWait, 0},
		{"RELAY_KAFKA_REQUEST_TIMEOUT", c.RequestTimeout, 100 * time.Millisecond},
		{"RELAY_KAFKA_DIAL_TIMEOUT", c.DialTimeout, 10 * time.Millisecond},
		{"RELAY_KAFKA_METADATA_TTL", c.MetadataTTL, 10 * time.Millisecond},
	} {
		if d.value < d.least {
			bad("%s=%s: want at least %s", d.name, d.value, d.least)
		}
	}
	return errors.Join(errs...)
}

func (c *Config) tlsFiles() tlsfiles.Client {
	return tlsfiles.Client{
		CA:         tlsfiles.Setting{Name: "RELAY_KAFKA_TLS_CA_FILE", Value: c.TLSCAFile},
		Cert:       tlsfiles.Setting{Name: "RELAY_KAFKA_TLS_CERT_FILE", Value: c.TLSCertFile},
		Key:        tlsfiles.Setting{Name: "RELAY_KAFKA_TLS_KEY_FILE", Value: c.TLSKeyFile},
		ServerName: tlsfiles.Setting{Name: "RELAY_KAFKA_TLS_SERVER_NAME", Value: c.TLSServerName},
	}
}

func (c *Config) tls() bool {
	return c.SecurityProtocol == protocolSSL || c.SecurityProtocol == protocolSASLSSL
}

// addresses returns Brokers as host:port. Errors do not repeat what was typed: it may contain a
// password.
func (c *Config) addresses() ([]string, error) {
	const name = "KAFKA_BOOTSTRAP_SERVERS (or BROKER_URL)"
	if err := address.Brokers(c.Brokers); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var addrs []string
	for _, addr := range c.Brokers {
		addr = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(addr), "kafka://"), "/")
		if addr == "" {
			continue
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil || port == "" { // no port
			host, port = strings.Trim(strings.TrimSuffix(addr, ":"), "[]"), "9092"
		}
		if host == "" {
			return nil, fmt.Errorf("%s: want host:port, several with commas between: a host is missing", name)
		}
		addrs = append(addrs, net.JoinHostPort(host, port))
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s is not set: want host:port of one or more brokers, separated by commas", name)
	}
	return addrs, nil
}

// CheckRoute reports a topic that no broker would have.
func (c *Config) CheckRoute(r relay.Route) error {
	if legalTopic(r.Topic) {
		return nil
	}
	return fmt.Errorf("%q of %d bytes is no legal name of a topic: want 1 to 249 of a-z A-Z 0-9 . _ -, but neither . nor .. alone", relay.Short(r.Topic), len(r.Topic))
}
