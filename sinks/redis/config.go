package redis

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/tlsfiles"
	"github.com/sagaz-relay/relay/relay"
)

// Config is where Redis is and how to write to it.
type Config struct {
	relay.Named

	// URL is where Redis is and who the relay is: redis://user:password@host:6379/0, or rediss:// for
	// TLS. The number is the database. A reserved character in user or password is percent-encoded.
	//
	// Default "redis://localhost:6379/0". REDIS_URL.
	URL string `env:"REDIS_URL" secret:"true"`

	// MaxLen is how many entries a stream keeps, about: with each new one Redis may drop old ones
	// (MAXLEN ~), whether they were read or not. 0 keeps all, until somebody trims the stream or
	// memory ends.
	//
	// Default 0. RELAY_REDIS_MAXLEN.
	MaxLen int `env:"RELAY_REDIS_MAXLEN"`

	// MakeStreams lets the first event of a topic make its stream. With false an event whose stream is
	// not there is refused as unknown_topic (NOMKSTREAM).
	//
	// Default true. RELAY_REDIS_MAKE_STREAMS.
	MakeStreams bool `env:"RELAY_REDIS_MAKE_STREAMS"`

	// Replicas is how many replicas must have an event before it counts as delivered (WAIT). With 0 an
	// event that only the primary had is lost when a replica takes over. Where there are fewer, events
	// wait, and each try adds them once more.
	//
	// Default 0. RELAY_REDIS_REPLICAS.
	Replicas int `env:"RELAY_REDIS_REPLICAS"`

	// Timeout is how long opening a connection, an answer, and the replicas may take. Too short, and a
	// Redis that is slow (a fork, a long script) gets everything twice; too long, and a lane notices
	// late that it hangs.
	//
	// Default 5s. RELAY_REDIS_TIMEOUT.
	Timeout time.Duration `env:"RELAY_REDIS_TIMEOUT"`

	// TLSCAFile holds the PEM certificates that sign the server's. Empty means the system's. Like the
	// other TLS settings it needs a rediss URL, and it is read again at every connect.
	//
	// Default: the system's. RELAY_REDIS_TLS_CA_FILE.
	TLSCAFile string `env:"RELAY_REDIS_TLS_CA_FILE"`

	// TLSCertFile is the relay's own certificate, for a server that asks for one (tls-auth-clients);
	// TLSKeyFile must be set too.
	//
	// No default. RELAY_REDIS_TLS_CERT_FILE.
	TLSCertFile string `env:"RELAY_REDIS_TLS_CERT_FILE"`

	// TLSKeyFile is the private key of TLSCertFile.
	//
	// No default. RELAY_REDIS_TLS_KEY_FILE.
	TLSKeyFile string `env:"RELAY_REDIS_TLS_KEY_FILE" secret:"path"`

	// TLSServerName is the name that the server's certificate must carry, when it is not the URL's
	// host.
	//
	// Default: the URL's host. RELAY_REDIS_TLS_SERVER_NAME.
	TLSServerName string `env:"RELAY_REDIS_TLS_SERVER_NAME"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{URL: "redis://localhost:6379/0", MakeStreams: true, Timeout: 5 * time.Second}
}

// Validate reports every problem at once, by the name of its variable. It never shows the URL.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, err := c.options(); err != nil {
		errs = append(errs, err)
	}
	if c.MaxLen < 0 {
		bad("RELAY_REDIS_MAXLEN=%d: want at least 1, or 0 to keep all", c.MaxLen)
	}
	if c.Replicas < 0 {
		bad("RELAY_REDIS_REPLICAS=%d: want at least 0", c.Replicas)
	}
	if c.Timeout < 100*time.Millisecond {
		bad("RELAY_REDIS_TIMEOUT=%s: want at least 100ms", c.Timeout)
	}
	if strings.HasPrefix(c.URL, "redis://") {
		if err := c.tlsFiles().Unused("REDIS_URL to begin with rediss://"); err != nil {
			errs = append(errs, err)
		}
	} else if _, err := c.tlsFiles().Config(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// options are the client's, without a dialer. Its own parser's errors quote the URL, so none of them
// is returned.
func (c Config) options() (*goredis.Options, error) {
	if err := address.Redis(c.URL); err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", err)
	}
	options, err := goredis.ParseURL(c.URL)
	if err != nil {
		return nil, errors.New("REDIS_URL: want redis://user:password@host:6379/0, with the database's number behind the slash, and reserved characters in user and password percent-encoded")
	}
	options.TLSConfig = nil // the dialer does it, so that files are read again
	return options, nil
}

func (c Config) secure() bool { return strings.HasPrefix(c.URL, "rediss://") }

// hostPort is where Redis is.
func (c Config) hostPort() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return ""
	}
	if u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "6379")
	}
	return u.Host
}

// tls reads the files.
func (c Config) tls() (*tls.Config, error) {
	files, err := c.tlsFiles().Config()
	if err == nil && files.ServerName == "" {
		files.ServerName, _, err = net.SplitHostPort(c.hostPort())
	}
	return files, err
}

func (c Config) tlsFiles() tlsfiles.Client {
	return tlsfiles.Client{
		CA:         tlsfiles.Setting{Name: "RELAY_REDIS_TLS_CA_FILE", Value: c.TLSCAFile},
		Cert:       tlsfiles.Setting{Name: "RELAY_REDIS_TLS_CERT_FILE", Value: c.TLSCertFile},
		Key:        tlsfiles.Setting{Name: "RELAY_REDIS_TLS_KEY_FILE", Value: c.TLSKeyFile},
		ServerName: tlsfiles.Setting{Name: "RELAY_REDIS_TLS_SERVER_NAME", Value: c.TLSServerName},
	}
}
