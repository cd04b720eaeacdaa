package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/tlsfiles"
	"github.com/sagaz-relay/relay/relay"
)

// Config is where events are posted to, and how.
type Config struct {
	relay.Named

	// URL is what each event is posted to: https://host/path, or http://. {topic} in path or query
	// becomes the event's topic (RELAY_TOPIC), so that each type can have a URL of its own. A user
	// and a password in it are sent as Basic authorization. A receiver that answers with a redirect
	// gets nothing: name the place that it points to.
	//
	// No default. RELAY_WEBHOOK_URL.
	URL string `env:"RELAY_WEBHOOK_URL" secret:"true"`

	// Secrets sign each request, as Standard Webhooks has it: whsec_ and a base64 text of 24 to 64
	// bytes for HMAC-SHA256 (v1), whsk_ and a base64 text of a private key for ed25519 (v1a). Make
	// one with: echo whsec_$(openssl rand -base64 32). With several, separated by commas, each
	// request has a signature of each: while a secret is replaced, name the new and the old one.
	// Without any, requests are not signed.
	//
	// No default. RELAY_WEBHOOK_SECRETS.
	Secrets []string `env:"RELAY_WEBHOOK_SECRETS" secret:"true"`

	// Headers are sent with each request: Name=value, several with commas between, such as
	// Authorization=Bearer%20TOKEN. Values are percent-encoded: a comma is %2C, a percent sign %25.
	//
	// No default. RELAY_WEBHOOK_HEADERS.
	Headers []string `env:"RELAY_WEBHOOK_HEADERS" secret:"true"`

	// Concurrency is how many requests are under way at most, of all lanes together; of one key it
	// is always one. Too few, and a receiver with slow answers slows the relay down; too many may be
	// more than it can bear.
	//
	// Default 16. RELAY_WEBHOOK_CONCURRENCY.
	Concurrency int `env:"RELAY_WEBHOOK_CONCURRENCY"`

	// Timeout is how long one request may take, from connecting to the status of the answer. Then
	// the event is offered again, although the receiver may still be at work on it. Too short, and a
	// slow receiver gets events twice; too long, and it is noticed late that it hangs. At most
	// RELAY_SINK_ISOLATION and RELAY_PUBLISH_TIMEOUT.
	//
	// Default 15s. RELAY_WEBHOOK_TIMEOUT.
	Timeout time.Duration `env:"RELAY_WEBHOOK_TIMEOUT"`

	// AllowPrivate lets the relay connect to private and loopback addresses whatever the host in URL
	// is called. Without it that is refused, so that a public name cannot be pointed at something
	// inside, unless the host is such an address itself or a name that only an inside can have: one
	// without a dot, or one that ends in .svc, .local, .internal, .localhost, .lan or .home.arpa (so
	// services of Kubernetes need nothing). Addresses of link-local networks, where clouds keep
	// their metadata, are refused always.
	//
	// Default false. RELAY_WEBHOOK_ALLOW_PRIVATE.
	AllowPrivate bool `env:"RELAY_WEBHOOK_ALLOW_PRIVATE"`

	// TLSCAFile holds the certificates (PEM) that the receiver's is checked against, instead of the
	// system's. Like the other TLS settings it needs an https URL, and it is read again at every
	// connection.
	//
	// Default: the system's. RELAY_WEBHOOK_TLS_CA_FILE.
	TLSCAFile string `env:"RELAY_WEBHOOK_TLS_CA_FILE"`

	// TLSCertFile is the relay's own certificate (PEM), for a receiver that asks for one;
	// TLSKeyFile must be set too.
	//
	// No default. RELAY_WEBHOOK_TLS_CERT_FILE.
	TLSCertFile string `env:"RELAY_WEBHOOK_TLS_CERT_FILE"`

	// TLSKeyFile is the private key (PEM, not encrypted) of TLSCertFile.
	//
	// No default. RELAY_WEBHOOK_TLS_KEY_FILE.
	TLSKeyFile string `env:"RELAY_WEBHOOK_TLS_KEY_FILE" secret:"path"`

	// TLSServerName is the name that the receiver's certificate must carry, when it is not the
	// URL's host.
	//
	// No default. RELAY_WEBHOOK_TLS_SERVER_NAME.
	TLSServerName string `env:"RELAY_WEBHOOK_TLS_SERVER_NAME"`

	// Tests have others.
	slice    time.Duration // after which a batch is returned in part; 0 is the default
	resolver *net.Resolver
}

// DefaultConfig returns the defaults. URL must be set.
func DefaultConfig() Config {
	return Config{Concurrency: 16, Timeout: 15 * time.Second}
}

// mostConcurrency bounds connections and goroutines.
const mostConcurrency = 1000

// Validate reports every problem at once, by the name of its variable. It shows neither URL nor
// secrets.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	to, err := c.address()
	if err != nil {
		errs = append(errs, err)
	}
	if _, err := newSigners(c.Secrets); err != nil {
		errs = append(errs, err)
	}
	if headers, err := c.headers(); err != nil {
		errs = append(errs, err)
	} else if to != nil && to.basic != "" && headers.Get("Authorization") != "" {
		bad("RELAY_WEBHOOK_URL has a user, and RELAY_WEBHOOK_HEADERS has Authorization: want one of them")
	}
	if c.Concurrency < 1 || c.Concurrency > mostConcurrency {
		bad("RELAY_WEBHOOK_CONCURRENCY=%d: want 1 to %d", c.Concurrency, mostConcurrency)
	}
	if c.Timeout < 10*time.Millisecond {
		bad("RELAY_WEBHOOK_TIMEOUT=%s: want at least 10ms", c.Timeout)
	}
	if err == nil && to.scheme != "https" {
		if err := c.tlsFiles().Unused("RELAY_WEBHOOK_URL to begin with https://"); err != nil {
			errs = append(errs, err)
		}
	} else if _, err := c.tlsFiles().Config(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// CheckOffer returns what is wrong with the settings where one offer of records lasts no longer than
// limit: a slower answer would never count, and its event would come to the receiver for ever.
func (c *Config) CheckOffer(limit time.Duration) error {
	if c.Timeout > limit {
		return fmt.Errorf("RELAY_WEBHOOK_TIMEOUT=%s: want at most %s, since an offer to a sink lasts no longer (RELAY_SINK_ISOLATION, RELAY_PUBLISH_TIMEOUT)", c.Timeout, limit)
	}
	return nil
}

func (c Config) tlsFiles() tlsfiles.Client {
	return tlsfiles.Client{
		CA:         tlsfiles.Setting{Name: "RELAY_WEBHOOK_TLS_CA_FILE", Value: c.TLSCAFile},
		Cert:       tlsfiles.Setting{Name: "RELAY_WEBHOOK_TLS_CERT_FILE", Value: c.TLSCertFile},
		Key:        tlsfiles.Setting{Name: "RELAY_WEBHOOK_TLS_KEY_FILE", Value: c.TLSKeyFile},
		ServerName: tlsfiles.Setting{Name: "RELAY_WEBHOOK_TLS_SERVER_NAME", Value: c.TLSServerName},
	}
}

// topicField is what URL may have in path and query.
const topicField = "{topic}"

// target is a URL in its parts.
type target struct {
	scheme, host, port string
	basic              string // Authorization; empty: none
	path, query        string // escaped; may have topicField
	templated          bool
}

// address reads URL. No error repeats a part of it.
func (c Config) address() (*target, error) {
	const name = "RELAY_WEBHOOK_URL"
	if c.URL == "" {
		return nil, errors.New(name + ": not set: want https://host/path")
	}
	if err := address.Webhook(c.URL); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for rest := c.URL; ; {
		_, after, open := strings.Cut(rest, "{")
		if !open {
			break
		}
		if !strings.HasPrefix(after, topicField[1:]) {
			return nil, fmt.Errorf("%s: want no { in it but in %s", name, topicField)
		}
		rest = after
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Hostname() == "" {
		return nil, fmt.Errorf("%s: want https://host/path, with reserved characters percent-encoded, and %s in path or query only", name, topicField)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && kindOf(ip) == forbiddenAddress {
		return nil, fmt.Errorf("%s: its address is link-local, multicast or reserved, which is never connected to: want that of a receiver", name)
	}
	t := &target{scheme: u.Scheme, host: u.Hostname(), port: u.Port(), query: u.RawQuery}
	if t.port == "" {
		t.port = map[string]string{"http": "80", "https": "443"}[t.scheme]
	}
	if u.User != nil {
		password, _ := u.User.Password()
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(u.User.Username(), password)
		t.basic = r.Header.Get("Authorization")
	}
	_, rest, _ := strings.Cut(c.URL, "://")
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		t.path, _, _ = strings.Cut(rest[i:], "?")
	}
	if t.path == "" {
		t.path = "/"
	}
	t.templated = strings.Contains(t.path, topicField) || strings.Contains(t.query, topicField)
	return t, nil
}

// Receiver is the URL's scheme, host and port, for people: its path may be a secret.
func (c *Config) Receiver() string {
	to, err := c.address()
	if err != nil {
		return ""
	}
	return to.String()
}

// headers reads Headers. No error repeats a value.
func (c Config) headers() (http.Header, error) {
	const name = "RELAY_WEBHOOK_HEADERS"
	headers := make(http.Header, len(c.Headers))
	for i, pair := range c.Headers {
		key, value, ok := strings.Cut(pair, "=")
		key = strings.TrimSpace(key)
		if !ok || !httpguts.ValidHeaderFieldName(key) {
			return nil, fmt.Errorf("%s: number %d: want Name=value, several with commas between, such as Authorization=Bearer%%20TOKEN", name, i+1)
		}
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("%s: the value of %s: want it percent-encoded: a comma is %%2C, a percent sign %%25", name, key)
		}
		if lower := strings.ToLower(key); slices.Contains(reserved, lower) && lower != "authorization" && lower != "user-agent" && lower != "cookie" {
			return nil, fmt.Errorf("%s: %s is set by HTTP, or by the signature: want another name", name, key)
		}
		if headers.Get(key) != "" {
			return nil, fmt.Errorf("%s: %s occurs twice", name, key)
		}
		headers.Set(key, value)
	}
	return headers, nil
}
