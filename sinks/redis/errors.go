package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	goredis "github.com/redis/go-redis/v9"

	"github.com/sagaz-relay/relay/relay"
)

// errReplicas is why a record that was added does not count as delivered.
var errReplicas = errors.New("too few replicas, see RELAY_REDIS_REPLICAS")

// isAnswer reports whether Redis has answered a command with an error.
func isAnswer(err error) bool {
	var answer goredis.Error
	return errors.As(err, &answer) && !tooLongText(err) // which it hangs up behind
}

// deniedKey is how Redis 7.0 and later ones report that a key is not the user's (acl.c).
var deniedKey = regexp.MustCompile(`access (a key|one of the keys)`)

// tooLongText reports the text with which Redis refuses an argument above proto-max-bulk-len
// (networking.c, processMultibulkBuffer).
func tooLongText(err error) bool {
	return err != nil && strings.Contains(err.Error(), "Protocol error: invalid bulk length")
}

// fate sorts the answer to a record. What is not listed is transient.
func (c Config) fate(rec *relay.Record, err error) error {
	switch {
	case err == nil, errors.Is(err, errReplicas):
		return err
	case errors.Is(err, goredis.Nil): // NOMKSTREAM
		return relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf("there is no stream %.100q, and RELAY_REDIS_MAKE_STREAMS=false: make it by a consumer group (XGROUP CREATE %.100s GROUP $ MKSTREAM)", rec.Topic, rec.Topic))
	case hasPrefix(err, "WRONGTYPE"):
		return relay.Refuse(relay.ReasonRejected, fmt.Errorf("key %.100q is no stream: %w", rec.Topic, err))
	case hasPrefix(err, "NOPERM") && deniedKey.MatchString(err.Error()):
		return relay.Refuse(relay.ReasonRejected, fmt.Errorf("the user may not write to key %.100q: ACL SETUSER USER ~%.100s", rec.Topic, rec.Topic))
	case strings.Contains(err.Error(), "The stream has exhausted the last possible ID"):
		return relay.Refuse(relay.ReasonRejected, fmt.Errorf("stream %.100q has no ids left: %w", rec.Topic, err))
	}
	return c.failure(err)
}

func hasPrefix(err error, code string) bool {
	var answer goredis.Error
	return errors.As(err, &answer) && strings.HasPrefix(answer.Error(), code)
}

func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// failure is the error for what concerns the whole sink, transient: a *relay.SetupError with what to
// fix, where a person has to.
func (c Config) failure(err error) error {
	var (
		unknownCA  x509.UnknownAuthorityError
		hostname   x509.HostnameError
		noTLS      tls.RecordHeaderError
		unresolved *net.DNSError
		op         *net.OpError
	)
	fix := ""
	switch {
	case hasPrefix(err, "NOAUTH"), hasPrefix(err, "WRONGPASS"), strings.Contains(err.Error(), "invalid username-password pair"), strings.Contains(err.Error(), "AUTH <password> called without any password"), strings.Contains(err.Error(), "unauthenticated"):
		fix = "the server refused the login: check user and password in REDIS_URL"
	case hasPrefix(err, "NOPERM"):
		fix = "give the user the right to it: ACL SETUSER USER +xadd +select +ping, and +wait with RELAY_REDIS_REPLICAS"
	case hasPrefix(err, "MOVED"), hasPrefix(err, "ASK"), hasPrefix(err, "CLUSTERDOWN"):
		fix = "this is a Redis Cluster, which this sink does not know: use a server of its own"
	case hasPrefix(err, "READONLY"):
		fix = "this is a replica: REDIS_URL must be the primary's address"
	case hasPrefix(err, "OOM"):
		fix = "the server is at its maxmemory: trim streams (RELAY_REDIS_MAXLEN), or raise it"
	case errors.As(err, &unresolved):
		fix = "the name does not resolve here: check the host in REDIS_URL"
	case errors.Is(err, syscall.ECONNREFUSED):
		fix = "nothing listens there: check that Redis runs, and host and port in REDIS_URL (6379)"
	case errors.As(err, &unknownCA):
		fix = "set RELAY_REDIS_TLS_CA_FILE to the certificate that signed the server's"
	case errors.As(err, &hostname):
		fix = "set RELAY_REDIS_TLS_SERVER_NAME to a name in the server's certificate"
	case errors.As(err, &noTLS):
		fix = "this port does not speak TLS: use redis:// in REDIS_URL, or the TLS port"
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert; its type is not exported
		fix = "the server refused the TLS session; when it wants a client certificate (tls-auth-clients) set RELAY_REDIS_TLS_CERT_FILE and RELAY_REDIS_TLS_KEY_FILE"
	case c.secure() && c.TLSCertFile == "" && hungUp(err):
		// With TLS 1.3 the server judges our certificate when our side of the handshake is done.
		fix = "the server hung up: when it wants a client certificate (tls-auth-clients) set RELAY_REDIS_TLS_CERT_FILE and RELAY_REDIS_TLS_KEY_FILE; and is this its TLS port?"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		fix = "no answer in time: check host and port in REDIS_URL, that the server is not busy, and that no firewall or network policy is in between"
	}
	what := "write to redis at " + c.hostPort()
	if fix == "" {
		return fmt.Errorf("%s: %w", what, err)
	}
	return &relay.SetupError{Problem: what, Err: err, Fix: c.Said(fix)}
}
