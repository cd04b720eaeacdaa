package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/sagaz-relay/relay/relay"
)

// errSilent is the error of records that were not sent because none of the requests before them has
// had an answer.
var errSilent = errors.New("not sent: the receiver answered none of the requests before it")

// noAnswer is why a request is broken off. It is a context.DeadlineExceeded, for those who count
// timeouts.
func (s *Sink) noAnswer() error {
	return fmt.Errorf("no answer within %s (%s): %w", s.cfg.Timeout, s.cfg.Said("RELAY_WEBHOOK_TIMEOUT"), context.DeadlineExceeded)
}

// causeOf is why ctx ended, where the error comes of that.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// connectError is the error of a request that had no answer: a *relay.SetupError with what to fix,
// where a person has to.
func (c Config) connectError(to *target, err error) error {
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
	case errors.Is(err, errGuarded):
		fix = "if that address is meant, set RELAY_WEBHOOK_ALLOW_PRIVATE=true; if not, the host in RELAY_WEBHOOK_URL is wrong, or somebody has changed where it leads to"
	case errors.As(err, &unresolved) && !unresolved.Timeout():
		fix = "the name does not resolve here: check the host in RELAY_WEBHOOK_URL"
	case errors.Is(err, syscall.ECONNREFUSED):
		fix = "nothing listens there: check that the receiver runs, and host and port in RELAY_WEBHOOK_URL"
	case errors.As(err, &unknownCA):
		fix = "set RELAY_WEBHOOK_TLS_CA_FILE to the certificate that signed the receiver's"
	case errors.As(err, &hostname):
		fix = "set RELAY_WEBHOOK_TLS_SERVER_NAME to a name in the receiver's certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		fix = "the receiver's certificate has expired, or a clock is wrong: renew it"
	case errors.As(err, &noTLS):
		fix = "this port does not speak TLS: want RELAY_WEBHOOK_URL to begin with http://, or another port"
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert; its type is not exported
		fix = "the receiver refused the TLS session; when it wants a client certificate set RELAY_WEBHOOK_TLS_CERT_FILE and RELAY_WEBHOOK_TLS_KEY_FILE"
	}
	what := "post to " + to.String()
	if fix == "" && quotesAnswer(err) {
		err, fix = errors.New("the answer is no HTTP that can be read"), "check that RELAY_WEBHOOK_URL is an HTTP receiver's, and whether it wants https://"
	}
	if fix == "" {
		return fmt.Errorf("%s: %w", what, err)
	}
	return &relay.SetupError{Problem: what, Err: err, Fix: c.Said(fix)}
}

// aboveHeaderLimit reports whether a request was not sent because its headers are above what the
// receiver has said to take (HTTP/2's SETTINGS_MAX_HEADER_LIST_SIZE). net/http does not export the
// error (http2errRequestHeaderListSize in h2_bundle.go).
func aboveHeaderLimit(err error) bool {
	return strings.Contains(err.Error(), "request header list larger than peer's advertised limit")
}

// quotesAnswer reports whether an error of net/http has a part of the answer in it. Those have no
// types: "malformed HTTP response \"…\"", "malformed MIME header line: …" and others (readResponse
// in net/http/response.go). A receiver may repeat there what it was sent.
func quotesAnswer(err error) bool {
	text := err.Error()
	return strings.Contains(text, "malformed") || strings.Contains(text, `"`)
}
