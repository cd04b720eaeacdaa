package nats

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/tlsfiles"
	"github.com/sagaz-relay/relay/relay"
)

// Config is how to reach the servers and how to publish.
type Config struct {
	relay.Named

	// Servers lists some servers of the cluster: nats://host:4222, or tls://host:4222 for TLS. When
	// the connection is lost they are tried in random order, so name two or three. A user and a
	// password, or a token, may be in the address: nats://user:password@host:4222, with reserved
	// characters percent-encoded (a comma is %2C).
	//
	// Default nats://localhost:4222. NATS_URL, comma-separated.
	Servers []string `env:"NATS_URL" secret:"address"`

	// User is the user to log in as, where it is not in NATS_URL.
	//
	// No default. NATS_USER.
	User string `env:"NATS_USER"`

	// Password is that user's password.
	//
	// No default. NATS_PASSWORD.
	Password string `env:"NATS_PASSWORD" secret:"true"`

	// Token is the token to log in with, for servers that have one instead of users.
	//
	// No default. NATS_TOKEN.
	Token string `env:"NATS_TOKEN" secret:"true"`

	// Creds is the content of a .creds file (a user's JWT and its seed), for servers with accounts
	// by JWT. NATS_CREDS_FILE names the file instead.
	//
	// No default. NATS_CREDS.
	Creds string `env:"NATS_CREDS" secret:"true"`

	// NKey is the seed of a user's NKey (it begins with SU). NATS_NKEY_FILE names a file that has it
	// instead.
	//
	// No default. NATS_NKEY.
	NKey string `env:"NATS_NKEY" secret:"true"`

	// Stream is the stream that must take the events: one that another stream takes is refused as
	// unroutable. Without it any stream will do that listens on the event's subject.
	//
	// No default. RELAY_NATS_STREAM.
	Stream string `env:"RELAY_NATS_STREAM"`

	// Window is how many messages each lane may have under way without an acknowledgement, each of
	// another key. Too small, and the lane waits for round trips. A stream answers "too many
	// requests" where more than 10,000 messages wait for it, so lanes times window should be less.
	// In any case at most 8 MiB of bodies are under way for each lane.
	//
	// Default 500. RELAY_NATS_WINDOW.
	Window int `env:"RELAY_NATS_WINDOW"`

	// AckTimeout is how long a message may stay unacknowledged, and how long one write to the
	// network may take. Then its fate counts as unknown and it is offered again. Too short, and a
	// stream that elects a leader gets everything twice (and drops it, see docs/messages.md); too
	// long, and a lane notices late that its stream hangs.
	//
	// Default 15s. RELAY_NATS_ACK_TIMEOUT.
	AckTimeout time.Duration `env:"RELAY_NATS_ACK_TIMEOUT"`

	// DialTimeout is how long opening a connection to one server may take, with TLS and login.
	//
	// Default 5s. RELAY_NATS_DIAL_TIMEOUT.
	DialTimeout time.Duration `env:"RELAY_NATS_DIAL_TIMEOUT"`

	// InboxPrefix begins the subjects that acknowledgements come to. The user needs the right to
	// subscribe below it. Change it where users may read only their own inboxes.
	//
	// Default _INBOX. RELAY_NATS_INBOX_PREFIX.
	InboxPrefix string `env:"RELAY_NATS_INBOX_PREFIX"`

	// TLSCAFile holds the PEM certificates that sign the servers'. Empty means the system's. Like the
	// other TLS settings it needs tls:// addresses, and it is read again at every connect.
	//
	// Default: the system's. RELAY_NATS_TLS_CA_FILE.
	TLSCAFile string `env:"RELAY_NATS_TLS_CA_FILE"`

	// TLSCertFile is the relay's own certificate, for servers that ask for one (verify: true);
	// TLSKeyFile must be set too.
	//
	// No default. RELAY_NATS_TLS_CERT_FILE.
	TLSCertFile string `env:"RELAY_NATS_TLS_CERT_FILE"`

	// TLSKeyFile is the private key of TLSCertFile.
	//
	// No default. RELAY_NATS_TLS_KEY_FILE.
	TLSKeyFile string `env:"RELAY_NATS_TLS_KEY_FILE" secret:"path"`

	// TLSServerName is the name that the servers' certificates must carry, when it is not the
	// address's host.
	//
	// Default: each server's host name. RELAY_NATS_TLS_SERVER_NAME.
	TLSServerName string `env:"RELAY_NATS_TLS_SERVER_NAME"`

	// WorkerID is who we are in the server's list of connections: "sagaz-relay <worker>".
	//
	// Default "". WORKER_ID.
	WorkerID string `env:"WORKER_ID"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Servers:     []string{"nats://localhost:4222"},
		Window:      500,
		AckTimeout:  15 * time.Second,
		DialTimeout: 5 * time.Second,
		InboxPrefix: "_INBOX",
	}
}

// maxWindow bounds what one lane can throw at a stream: it refuses requests when 10,000 wait.
const maxWindow = 10_000

// Validate reports every problem at once, by the name of its variable. It never shows an address.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := address.NATS(c.Servers); err != nil {
		bad("NATS_URL: %w", err)
	} else if c.secure() {
		if _, err := c.tls(); err != nil {
			errs = append(errs, err)
		}
	} else if err := c.tlsFiles().Unused("each address of NATS_URL to begin with tls://"); err != nil {
		errs = append(errs, err)
	}
	if ways := c.logins(); len(ways) > 1 {
		bad("%s: want one way to log in, not several", strings.Join(ways, " and "))
	}
	if (c.User == "") != (c.Password == "") {
		bad("NATS_USER and NATS_PASSWORD: want both or neither")
	}
	if c.NKey != "" {
		if pair, err := nkeys.FromSeed([]byte(c.NKey)); err != nil {
			bad("NATS_NKEY: want the seed of a user's NKey, which begins with SU")
		} else if public, err := pair.PublicKey(); err != nil || !nkeys.IsValidPublicUserKey(public) {
			bad("NATS_NKEY: the seed is not a user's: want one that begins with SU")
		}
	}
	if c.Creds != "" {
		if _, err := nkeys.ParseDecoratedJWT([]byte(c.Creds)); err != nil {
			bad("NATS_CREDS: want the content of a .creds file, with a user's JWT in it")
		} else if _, err := nkeys.ParseDecoratedNKey([]byte(c.Creds)); err != nil {
			bad("NATS_CREDS: want the content of a .creds file, with the user's seed in it")
		}
	}
	if strings.ContainsAny(c.Stream, " \t\r\n.*>/\\") {
		bad("RELAY_NATS_STREAM=%.40s: want a stream's name, which has no space, dot, *, > or slash", c.Stream)
	}
	if c.Window < 1 || c.Window > maxWindow {
		bad("RELAY_NATS_WINDOW=%d: want 1 to %d", c.Window, maxWindow)
	}
	if c.AckTimeout < 100*time.Millisecond {
		bad("RELAY_NATS_ACK_TIMEOUT=%s: want at least 100ms", c.AckTimeout)
	}
	if c.DialTimeout < 10*time.Millisecond {
		bad("RELAY_NATS_DIAL_TIMEOUT=%s: want at least 10ms", c.DialTimeout)
	}
	if legalSubject(c.InboxPrefix) != "" {
		bad("RELAY_NATS_INBOX_PREFIX=%.40s: want a subject without wildcards, such as _INBOX_relay", c.InboxPrefix)
	}
	return errors.Join(errs...)
}

// logins are the settings that log in, of which one is enough.
func (c Config) logins() (ways []string) {
	for _, way := range []struct {
		set  bool
		name string
	}{
		{strings.Contains(strings.Join(c.Servers, ","), "@"), "a user or token in NATS_URL"},
		{c.User != "" || c.Password != "", "NATS_USER with NATS_PASSWORD"},
		{c.Token != "", "NATS_TOKEN"},
		{c.Creds != "", "NATS_CREDS"},
		{c.NKey != "", "NATS_NKEY"},
	} {
		if way.set {
			ways = append(ways, way.name)
		}
	}
	return ways
}

// secure reports whether the servers must speak TLS.
func (c Config) secure() bool {
	return len(c.Servers) > 0 && strings.HasPrefix(c.Servers[0], "tls://")
}

func (c Config) tls() (*tls.Config, error) { return c.tlsFiles().Config() }

func (c Config) tlsFiles() tlsfiles.Client {
	return tlsfiles.Client{
		CA:         tlsfiles.Setting{Name: "RELAY_NATS_TLS_CA_FILE", Value: c.TLSCAFile},
		Cert:       tlsfiles.Setting{Name: "RELAY_NATS_TLS_CERT_FILE", Value: c.TLSCertFile},
		Key:        tlsfiles.Setting{Name: "RELAY_NATS_TLS_KEY_FILE", Value: c.TLSKeyFile},
		ServerName: tlsfiles.Setting{Name: "RELAY_NATS_TLS_SERVER_NAME", Value: c.TLSServerName},
	}
}

// login is the client's option for how to log in; nil where NATS_URL has it, or nobody wants it.
func (c Config) login() (nats.Option, error) {
	switch {
	case c.User != "":
		return nats.UserInfo(c.User, c.Password), nil
	case c.Token != "":
		return nats.Token(c.Token), nil
	case c.Creds != "":
		return nats.UserCredentialBytes([]byte(c.Creds)), nil
	case c.NKey != "":
		pair, err := nkeys.FromSeed([]byte(c.NKey))
		if err != nil {
			return nil, errors.New("NATS_NKEY: not a seed") // the library's error may quote it
		}
		public, err := pair.PublicKey()
		if err != nil {
			return nil, errors.New("NATS_NKEY: not a user's seed")
		}
		return nats.Nkey(public, pair.Sign), nil
	}
	return nil, nil
}

// addresses name the servers in errors and logs, without what logs in.
func (c Config) addresses() string {
	var list []string
	for _, server := range c.Servers {
		list = append(list, address.Show(server))
	}
	return strings.Join(list, ",")
}

// hostPort is where the only server is; empty when there are several.
func (c Config) hostPort() (host, port string) {
	if len(c.Servers) != 1 {
		return "", ""
	}
	_, rest, ok := strings.Cut(c.Servers[0], "://")
	if !ok {
		rest = c.Servers[0]
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	if host, port, err := net.SplitHostPort(rest); err == nil {
		return host, port
	}
	return strings.Trim(rest, "[]"), "4222"
}
