package kafka

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
	"strconv"
	"syscall"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/sagaz-relay/relay/relay"
)

// dialer opens connections that are ready for requests: TCP, TLS, versions, login. It is read-only.
type dialer struct {
	cfg       *Config
	mechanism sasl.Mechanism // nil without SASL
}

func newDialer(cfg *Config) (*dialer, error) {
	d := &dialer{cfg: cfg}
	var err error
	switch cfg.SASLMechanism {
	case mechanismPlain:
		d.mechanism = plain.Mechanism{Username: cfg.SASLUsername, Password: cfg.SASLPassword}
	case mechanismSCRAM256:
		d.mechanism, err = scram.Mechanism(scram.SHA256, cfg.SASLUsername, cfg.SASLPassword)
	case mechanismSCRAM512:
		d.mechanism, err = scram.Mechanism(scram.SHA512, cfg.SASLUsername, cfg.SASLPassword)
	}
	if err != nil {
		// The library's error quotes what it was given, which is the password or the user name.
		return nil, fmt.Errorf("KAFKA_SASL_USERNAME or KAFKA_SASL_PASSWORD holds characters that %s does not allow (SASLprep, RFC 4013)", cfg.SASLMechanism)
	}
	if cfg.tls() {
		if _, err := d.tlsConfig("localhost"); err != nil { // a missing file is reported at start
			return nil, err
		}
	}
	return d, nil
}

// tlsConfig reads the files again for each connection, so that rotated certificates are picked up.
func (d *dialer) tlsConfig(host string) (*tls.Config, error) {
	c, err := d.cfg.tlsFiles().Config()
	if err != nil {
		return nil, err
	}
	c.ServerName = cmp.Or(c.ServerName, host)
	return c, nil
}

// dial returns a connection to the broker at addr with the versions it speaks. Its errors name the
// address and what to check.
func (d *dialer) dial(ctx context.Context, addr string) (*wire, map[protocol.ApiKey]int16, error) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.DialTimeout)
	defer cancel()
	open := d.cfg.dial
	if open == nil {
		open = new(net.Dialer).DialContext
	}
	nc, err := open(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, fmt.Errorf("dial kafka at %s: %w", addr, hint(err, d.cfg, dialing))
	}
	// Whatever blocks below ends with the context.
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	conn, versions, step, err := d.greet(ctx, nc, addr)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = nc.Close()
		if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			err = context.Cause(ctx)
		}
		return nil, nil, fmt.Errorf("%s with kafka at %s: %w", step, addr, hint(err, d.cfg, step))
	}
	return conn, versions, nil
}

// step is how far the opening of a connection has come.
type step string

const (
	dialing     step = "dial"
	handshaking step = "TLS handshake"
	versioning  step = "agree on versions"
	loggingIn   step = "SASL login"
	asking      step = "exchange"
)

func (d *dialer) greet(ctx context.Context, nc net.Conn, addr string) (*wire, map[protocol.ApiKey]int16, step, error) {
	host, portText, _ := net.SplitHostPort(addr)
	if d.cfg.tls() {
		config, err := d.tlsConfig(host)
		if err != nil {
			return nil, nil, handshaking, err
		}
		t := tls.Client(nc, config)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, nil, handshaking, err
		}
		nc = t
	}
	conn := newWire(nc, d.cfg.ClientID)
	msg, err := conn.RoundTrip(&apiversions.Request{})
	if err != nil {
		return nil, nil, versioning, err
	}
	res := msg.(*apiversions.Response)
	if res.ErrorCode != 0 {
		return nil, nil, versioning, kafkago.Error(res.ErrorCode)
	}
	versions := make(map[protocol.ApiKey]int16, len(res.ApiKeys))
	for _, k := range res.ApiKeys {
		key := protocol.ApiKey(k.ApiKey)
		versions[key] = key.SelectVersion(k.MinVersion, k.MaxVersion)
	}
	if versions[protocol.Produce] < 3 {
		return nil, nil, versioning, errors.New("the broker is older than Kafka 0.11 and knows no record batches")
	}
	conn.versions = versions
	if d.mechanism != nil {
		port, _ := strconv.Atoi(portText)
		if err := login(sasl.WithMetadata(ctx, &sasl.Metadata{Host: host, Port: port}), conn, d.mechanism); err != nil {
			return nil, nil, loggingIn, err
		}
	}
	return conn, versions, asking, nil
}

func login(ctx context.Context, conn *wire, mechanism sasl.Mechanism) error {
	msg, err := conn.RoundTrip(&saslhandshake.Request{Mechanism: mechanism.Name()})
	if err != nil {
		return err
	}
	if res := msg.(*saslhandshake.Response); res.ErrorCode != 0 {
		return fmt.Errorf("%w (the broker's listener has %.200s)", kafkago.Error(res.ErrorCode), fmt.Sprintf("%q", res.Mechanisms[:min(len(res.Mechanisms), 20)]))
	}
	session, state, err := mechanism.Start(ctx)
	if err != nil {
		return errors.New("mechanism cannot start") // its text could quote the credential
	}
	for done := false; !done; {
		msg, err := conn.RoundTrip(&saslauthenticate.Request{AuthBytes: state})
		if err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = kafkago.SASLAuthenticationFailed // a broker may refuse by hanging up
			}
			return err
		}
		res := msg.(*saslauthenticate.Response)
		if res.ErrorCode != 0 {
			return kafkago.Error(res.ErrorCode)
		}
		if done, state, err = session.Next(ctx, res.AuthBytes); err != nil {
			return errors.New("the broker's proof that it knows the password is wrong")
		}
	}
	return nil
}

// hinted is an error with what to check. To those who show the two separately it is a
// *relay.SetupError.
type hinted struct {
	err error
	fix string
}

func (e *hinted) Error() string { return fmt.Sprintf("%v (%s)", e.err, e.fix) }
func (e *hinted) Unwrap() error { return e.err }

func (e *hinted) As(target any) bool {
	setup, ok := target.(**relay.SetupError)
	if ok {
		*setup = &relay.SetupError{Problem: e.err.Error(), Fix: e.fix}
	}
	return ok
}

// hint adds to an error what to check.
func hint(err error, cfg *Config, at step) error {
	var (
		unknownCA  x509.UnknownAuthorityError
		wrongName  x509.HostnameError
		invalid    x509.CertificateInvalidError
		notTLS     tls.RecordHeaderError
		fromPeer   *net.OpError
		unresolved *net.DNSError
		foreign    *notKafka
	)
	add := func(fix string) error { return &hinted{err, cfg.Said(fix)} }
	switch {
	case errors.As(err, &foreign):
		return add("something else listens there: check address and port in KAFKA_BOOTSTRAP_SERVERS, and KAFKA_SECURITY_PROTOCOL=" + cfg.SecurityProtocol)
	case errors.As(err, &unresolved):
		return add("the name does not resolve here: check KAFKA_BOOTSTRAP_SERVERS, and the brokers' advertised.listeners when it is not one of those")
	case errors.Is(err, syscall.ECONNREFUSED):
		return add("nothing listens there: check KAFKA_BOOTSTRAP_SERVERS, that the broker is up, and that its advertised.listeners can be reached from here")
	case errors.As(err, &unknownCA):
		return add("the broker's certificate is signed by an authority not trusted here: set RELAY_KAFKA_TLS_CA_FILE")
	case errors.As(err, &wrongName):
		return add("the broker's certificate is for another name: use that name in KAFKA_BOOTSTRAP_SERVERS and advertised.listeners, or set RELAY_KAFKA_TLS_SERVER_NAME")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return add("the broker's certificate has expired, or a clock is wrong: renew it")
	case errors.As(err, &notTLS):
		return add("the listener does not speak TLS: check the port, or KAFKA_SECURITY_PROTOCOL=" + cfg.SecurityProtocol)
	case errors.As(err, &fromPeer) && fromPeer.Op == "remote error":
		// a TLS alert; its type is not exported
		return add("the broker refused the TLS session; when it wants a client certificate set RELAY_KAFKA_TLS_CERT_FILE and RELAY_KAFKA_TLS_KEY_FILE")
	case errors.Is(err, kafkago.SASLAuthenticationFailed):
		return add("check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM")
	case errors.Is(err, kafkago.UnsupportedSASLMechanism):
		return add("KAFKA_SASL_MECHANISM=" + cfg.SASLMechanism + " is not switched on at this listener")
	case errors.Is(err, kafkago.IllegalSASLState):
		return add("the listener wants no SASL login: check the port, or KAFKA_SECURITY_PROTOCOL=" + cfg.SecurityProtocol)
	case hungUp(err) && at == handshaking:
		return add("the listener may not speak TLS, or wants a client certificate: check KAFKA_SECURITY_PROTOCOL=" + cfg.SecurityProtocol + ", RELAY_KAFKA_TLS_CERT_FILE")
	case hungUp(err) && at == versioning && !cfg.tls():
		return add("the listener may want TLS: check KAFKA_SECURITY_PROTOCOL=" + cfg.SecurityProtocol)
	case hungUp(err) && at == versioning:
		return add("the broker may want a client certificate: RELAY_KAFKA_TLS_CERT_FILE and RELAY_KAFKA_TLS_KEY_FILE")
	case hungUp(err) && at == loggingIn:
		return add("the listener may want no SASL login: check KAFKA_SECURITY_PROTOCOL=" + cfg.SecurityProtocol)
	case hungUp(err) && at == asking && cfg.SASLMechanism == "":
		return add("the listener may want a SASL login: check KAFKA_SECURITY_PROTOCOL=" + cfg.SecurityProtocol)
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return add("no answer in time: check KAFKA_BOOTSTRAP_SERVERS, that the broker runs, and that no firewall or network policy is in between")
	}
	return err
}

func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
