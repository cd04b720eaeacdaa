package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/sagaz-relay/relay/internal/tlsfiles"
)

// Config has the settings of the HTTP side.
type Config struct {
	// Addr is the address to bind. It comes from METRICS_PORT or RELAY_HTTP_ADDR; empty serves
	// nothing.
	Addr string

	// Token is asked for by everything but /health: as `Authorization: Bearer TOKEN`, or as the
	// password of any user. It has at least 16 characters; empty asks for none. Without TLS it
	// crosses the network in clear.
	//
	// Default none. RELAY_HTTP_TOKEN.
	Token string `env:"RELAY_HTTP_TOKEN" secret:"true"`

	// CertFile and KeyFile are the certificate (with its chain) and key in PEM; both or none. With
	// them everything speaks TLS 1.2 or later, and probes need scheme HTTPS. Changed files are
	// noticed at the next connection.
	//
	// Default none: plain HTTP. RELAY_HTTP_TLS_CERT_FILE, RELAY_HTTP_TLS_KEY_FILE.
	CertFile string `env:"RELAY_HTTP_TLS_CERT_FILE"`
	KeyFile  string `env:"RELAY_HTTP_TLS_KEY_FILE" secret:"path"`

	// Redact, if not nil, removes from answers what may not be shown.
	Redact func([]byte) []byte

	// Version and Revision are of the program.
	Version, Revision string
	// Database looks at what relays share, for the page: who owns what, the ledger. It is called
	// while the page is open somewhere, not more than once in five seconds. Nil: the page shows
	// only this relay.
	Database func(context.Context) (*Database, error)
}

// DefaultConfig asks for no token and speaks plain HTTP.
func DefaultConfig() Config { return Config{} }

// shortestToken is how long a token must be: nothing slows down a client that tries many.
const shortestToken = 16

// Validate reports every problem.
func (c Config) Validate() error {
	var errs []error
	if c.Token != "" && len(c.Token) < shortestToken {
		errs = append(errs, fmt.Errorf("RELAY_HTTP_TOKEN: want at least %d characters, such as the output of: openssl rand -hex 16", shortestToken))
	}
	if strings.ContainsFunc(c.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		errs = append(errs, errors.New("RELAY_HTTP_TOKEN: want printable ASCII without spaces: it travels in a header"))
	}
	if err := tlsfiles.Both(tlsSettings(c.CertFile, c.KeyFile)); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func tlsSettings(certFile, keyFile string) (cert, key tlsfiles.Setting) {
	return tlsfiles.Setting{Name: "RELAY_HTTP_TLS_CERT_FILE", Value: certFile}, tlsfiles.Setting{Name: "RELAY_HTTP_TLS_KEY_FILE", Value: keyFile}
}

// guarded lets only requests with the token through.
func guarded(token string, next http.Handler) http.Handler {
	if token == "" {
		return next
	}
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := ""
		if _, password, ok := r.BasicAuth(); ok {
			got = password
		} else if scheme, credentials, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
			got = strings.TrimSpace(credentials)
		}
		// Of equal length, so that the comparison shows nothing of the token's.
		sum := sha256.Sum256([]byte(got))
		if subtle.ConstantTimeCompare(sum[:], want[:]) == 1 {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Add("WWW-Authenticate", `Basic realm="sagaz-relay", charset="UTF-8"`)
		w.Header().Add("WWW-Authenticate", `Bearer realm="sagaz-relay"`)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = fmt.Fprintln(w, "a token is needed: Authorization: Bearer TOKEN, or the token as the password of any user")
	})
}
