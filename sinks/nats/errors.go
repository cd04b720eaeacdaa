package nats

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sagaz-relay/relay/relay"
)

// Codes of JetStream's errors (server/errors.json of nats-server), of those that a message can meet.
const (
	codeMessageTooLarge = 10054 // above the stream's max_msg_size
	codeHeaderTooLarge  = 10097
	codeOtherStream     = 10060 // Nats-Expected-Stream
	codeSealed          = 10109
)

// maxHeaders is what a stream takes of headers, in bytes.
const maxHeaders = 64 << 10

// fate sorts the answer to a record. What is not listed is transient: a stream or an account that
// is full, storage that fails, a leader that moves, too many requests.
func (c Config) fate(rec *relay.Record, err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return err
	}
	switch api.ErrorCode {
	case codeMessageTooLarge:
		return &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: int64(rec.Size()), Err: errors.New("above the stream's max_msg_size")}
	case codeHeaderTooLarge:
		return &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: int64(rec.Size() - len(rec.Value)), Limit: maxHeaders, Err: errors.New("its headers are above what a stream takes")}
	case codeOtherStream:
		return relay.Refuse(relay.ReasonUnroutable, fmt.Errorf("subject %.100q is another stream's than %s: %s", rec.Topic, c.Stream, c.Said("add it to that one's subjects, or change RELAY_NATS_STREAM")))
	case codeSealed:
		return relay.Refuse(relay.ReasonRejected, fmt.Errorf("the stream of subject %.100q is sealed, and takes no message any more", rec.Topic))
	}
	return fmt.Errorf("subject %.100q: %s (%d)", rec.Topic, api.Description, api.ErrorCode)
}

// noStream reports the answer that no stream has a subject.
func noStream(err error) bool { return errors.Is(err, jetstream.ErrStreamNotFound) }

// check asks whether JetStream is there.
func (l *link) check(ctx context.Context) error {
	if err := l.nc.FlushWithContext(ctx); err != nil {
		return fmt.Errorf("ask %s: %w", l.cfg.addresses(), err)
	}
	asking, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	_, err := l.js.AccountInfo(asking)
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
		return &relay.SetupError{
			Problem: "the server at " + l.cfg.addresses() + " has no JetStream for this account", Err: err,
			Fix: "switch it on: jetstream { store_dir: … } in the server's configuration, and jetstream: enabled in the account's",
		}
	case err != nil && ctx.Err() == nil && !l.alive():
		return l.reason()
	}
	return nil // a user who may not ask may still publish
}

// connectError is the error for a connection that could not be made: a *relay.SetupError with what
// to fix, where a person has to. dial is the last server's that could not be reached: the client
// does not report that.
func (c Config) connectError(err, dial error) error {
	if errors.Is(err, nats.ErrNoServers) && dial != nil {
		err = dial
	}
	var (
		unknownCA  x509.UnknownAuthorityError
		hostname   x509.HostnameError
		invalid    x509.CertificateInvalidError
		noTLS      tls.RecordHeaderError
		unresolved *net.DNSError
		op         *net.OpError
	)
	fix := ""
	switch {
	case errors.As(err, &unresolved):
		fix = "the name does not resolve here: check the host in NATS_URL"
	case errors.Is(err, syscall.ECONNREFUSED):
		fix = "nothing listens there: check that the server runs, and host and port in NATS_URL (4222)"
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked), errors.Is(err, nats.ErrAccountAuthExpired):
		fix = "the server refused the login: check " + cmp.Or(c.loginSetting(), "NATS_USER with NATS_PASSWORD, NATS_TOKEN, NATS_CREDS or NATS_NKEY: none is set")
	case errors.As(err, &unknownCA):
		fix = "set RELAY_NATS_TLS_CA_FILE to the certificate that signed the server's, and use tls:// in NATS_URL"
	case errors.As(err, &hostname):
		fix = "set RELAY_NATS_TLS_SERVER_NAME to a name in the server's certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		fix = "the server's certificate has expired, or a clock is wrong: renew it"
	case errors.Is(err, nats.ErrSecureConnWanted), errors.As(err, &noTLS):
		fix = "the server does not speak TLS: use nats:// in NATS_URL, or switch TLS on there"
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert; its type is not exported
		fix = "the server refused the TLS session; when it wants a client certificate (verify: true) set RELAY_NATS_TLS_CERT_FILE and RELAY_NATS_TLS_KEY_FILE"
	case c.secure() && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)):
		fix = "the server hung up, and may want another client certificate: check RELAY_NATS_TLS_CERT_FILE and RELAY_NATS_TLS_KEY_FILE"
	case errors.Is(err, nats.ErrTimeout), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		fix = "no answer in time: check host and port in NATS_URL, that the server runs, and that no firewall or network policy is in between"
	case errors.Is(err, nats.ErrNoInfoReceived), errors.Is(err, io.EOF):
		fix = "what listens there is no NATS server, or is stopping: check host and port in NATS_URL"
	}
	what := "connect to " + c.addresses()
	if fix == "" {
		return fmt.Errorf("%s: %w", what, err)
	}
	return &relay.SetupError{Problem: what, Err: err, Fix: c.Said(fix)}
}

// loginSetting is the setting that logs in; empty: none.
func (c Config) loginSetting() string {
	if ways := c.logins(); len(ways) > 0 {
		return ways[0]
	}
	return ""
}
