package rabbitmq

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"syscall"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

// ErrClosed is what Publish returns after and because of Close.
var ErrClosed = errors.New("sink closed")

// connectError is the error for a connection that could not be made: a *relay.SetupError with what
// to fix, where a person has to.
func (c Config) connectError(uri amqp.URI, err error) error {
	var (
		unknownCA  x509.UnknownAuthorityError
		hostname   x509.HostnameError
		invalid    x509.CertificateInvalidError
		noTLS      tls.RecordHeaderError
		unresolved *net.DNSError
		op         *net.OpError
		ae         *amqp.Error
	)
	problem, fix := "", ""
	switch {
	case errors.As(err, &unresolved):
		fix = "the name does not resolve here: check the host in RABBITMQ_URL"
	case errors.Is(err, syscall.ECONNREFUSED):
		fix = "nothing listens there: check that the broker runs, and host and port in RABBITMQ_URL (5672, with TLS 5671)"
	case errors.As(err, &unknownCA):
		// The handshake found a chain that ends in no certificate that we know.
		fix = "set RELAY_RABBITMQ_TLS_CA_FILE to the certificate that signed the broker's"
	case errors.As(err, &hostname):
		// The certificate is good, but made out to another name.
		fix = "set RELAY_RABBITMQ_TLS_SERVER_NAME to a name in the broker's certificate"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		fix = "the broker's certificate has expired, or a clock is wrong: renew it"
	case errors.As(err, &noTLS):
		// The answer to our hello was no TLS record: the port is the plain one, most likely.
		fix = "this port does not speak TLS; 5671 is the usual one for amqps://"
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert; its type is not exported
		fix = "the broker refused the TLS session; when it wants a client certificate set RELAY_RABBITMQ_TLS_CERT_FILE and RELAY_RABBITMQ_TLS_KEY_FILE"
	case errors.Is(err, amqp.ErrVhost):
		// It hung up when the vhost was named.
		problem, fix = "the broker refused the vhost", c.vhostFix(uri.Vhost)
	case errors.Is(err, amqp.ErrSASL) && c.SASLMechanism == mechanismExternal:
		problem, fix = "the broker knows no login by certificate", "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl, and EXTERNAL among auth_mechanisms in rabbitmq.conf"
	case errors.Is(err, amqp.ErrSASL):
		problem, fix = "the broker wants another kind of login", "switch the mechanism PLAIN on: auth_mechanisms in rabbitmq.conf"
	case errors.As(err, &ae) && ae.Code == amqp.AccessRefused && !ae.Server:
		// RabbitMQ hangs up during the login (amqp091 makes an error of its own of that), having
		// logged why.
		problem = "the broker refused the login"
		if c.SASLMechanism == mechanismExternal {
			fix = "the certificate of RELAY_RABBITMQ_TLS_CERT_FILE names no user of the broker: its user is the subject, or what ssl_cert_login_from in rabbitmq.conf says; list them with: rabbitmqctl list_users"
			break
		}
		fix = "wrong user, password, or both, in RABBITMQ_URL; try them with: rabbitmqctl authenticate_user USER PASSWORD; guest may connect only from the broker's own host"
	case errors.As(err, &ae) && ae.Server && (ae.Code == amqp.NotAllowed || ae.Code == amqp.AccessRefused):
		// The broker's own text: no such vhost, no permission for it, too many connections.
		problem, fix = "the broker refused the vhost", c.vhostFix(uri.Vhost)
	case c.TLSCertFile != "" && hungUp(err):
		// With TLS 1.3 the broker judges our certificate when our side of the handshake is done
		// already. Its alert is then the first thing read, unless the reset that follows it is
		// noticed before.
		fix = "the broker hung up, and may not like our certificate: check RELAY_RABBITMQ_TLS_CERT_FILE and RELAY_RABBITMQ_TLS_KEY_FILE"
	case hungUp(err):
		// Hung up before the login, or an answer that is no AMQP: a TLS port, or no RabbitMQ.
		fix = "is this RabbitMQ's AMQP port? For its TLS port RABBITMQ_URL begins with amqps://"
	case errors.Is(err, errNotDone) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded):
		problem = "no answer in time"
		fix = "check host and port in RABBITMQ_URL, that the broker runs, and that no firewall or network policy is in between"
	}
	what := "connect to " + address(uri)
	if problem != "" {
		what += ": " + problem
	}
	if fix == "" {
		return fmt.Errorf("%s: %w", what, reason(err))
	}
	return &relay.SetupError{Problem: what, Err: reason(err), Fix: c.Said(fix)}
}

// vhostFix are the commands for a vhost that is not there, or not for this user. They do not name
// the user: a URL with a mistake in it may have the password there.
func (c Config) vhostFix(vhost string) string {
	return fmt.Sprintf("check the vhost in RABBITMQ_URL with: rabbitmqctl list_vhosts; make it with: rabbitmqctl add_vhost %s; let the user in with: %s", term.Shell(vhost), c.permit(vhost))
}

// permit is the command that gives the user what the relay needs.
func (c Config) permit(vhost string) string {
	exchange := term.Shell("^" + regexp.QuoteMeta(c.Exchange) + "$")
	configure := "'^$'"
	if c.Declare {
		configure = exchange
	}
	return fmt.Sprintf("rabbitmqctl set_permissions --vhost %s USER %s %s '^$'", term.Shell(vhost), configure, exchange)
}

// hungUp reports whether the peer ended the connection during the handshake, or sent what is no
// AMQP. amqp091 has one code for all that it reads and does not understand.
func hungUp(err error) bool {
	var ae *amqp.Error
	if errors.As(err, &ae) {
		return !ae.Server && (ae.Code == amqp.FrameError || ae == amqp.ErrClosed)
	}
	// Closed by our own end: amqp091's reader saw the hang-up while the handshake was still
	// writing.
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// declareError is the error for an exchange that cannot be published to. All of these concern the
// whole sink.
func (c Config) declareError(err error) error {
	var ae *amqp.Error
	hint := ""
	if errors.As(err, &ae) {
		switch ae.Code {
		case amqp.PreconditionFailed:
			// An exchange of that name exists with another type, or not durable, or with other
			// arguments.
			hint = fmt.Sprintf("it exists and is not as we declare it, durable and of type %s: set RABBITMQ_EXCHANGE_TYPE to its type, or RELAY_RABBITMQ_DECLARE=false to take it as it is", c.ExchangeType)
		case amqp.CommandInvalid, amqp.SyntaxError, amqp.NotImplemented:
			// No plugin of this broker knows the type.
			hint = fmt.Sprintf("RABBITMQ_EXCHANGE_TYPE=%s: the broker has no such type", c.ExchangeType)
		case amqp.AccessRefused:
			// The user lacks the configure permission on that name, or it begins with amq. and does
			// not exist.
			hint = "grant the user of RABBITMQ_URL the permission to configure it: " + c.permit(c.vhost()) + "; or create it and set RELAY_RABBITMQ_DECLARE=false"
		case amqp.NotFound:
			// Only when we look without declaring.
			hint = "create it: " + c.declareCommand() + "; or set RELAY_RABBITMQ_DECLARE=true"
		}
	}
	problem := fmt.Sprintf("declare exchange %q (%s)", c.Exchange, c.Said("RABBITMQ_EXCHANGE"))
	if hint != "" {
		return &relay.SetupError{Problem: problem, Err: reason(err), Fix: c.Said(hint)}
	}
	return fmt.Errorf("%s: %w", problem, reason(err))
}

// blame finds whether a channel exception is the fault of single messages. It returns a function
// that gives the refusal of each record at fault, and nil for those that only shared the channel.
// It returns nil when no record is to blame. A limit above 0 is the size limit that the broker
// named.
func (c Config) blame(err *amqp.Error) (refuse func(*relay.Record) error, limit int64) {
	if err == nil {
		return nil, 0
	}
	switch err.Code {
	case amqp.PreconditionFailed:
		// basic.publish of a body above max_message_size (128 MB in 3.8, 16 MB in 4.0).
		size, limit, ok := tooLarge(err.Reason)
		if !ok {
			return nil, 0
		}
		return func(rec *relay.Record) error {
			if int64(len(rec.Value)) > limit || int64(len(rec.Value)) == size {
				return refuseSize(int64(len(rec.Value)), limit, "above the broker's max_message_size")
			}
			return nil
		}, limit
	case amqp.AccessRefused:
		// The user has topic permissions on the exchange and this routing key does not match them.
		// Without topic permissions the refusal is about the exchange, and no record is to blame.
		topic, ok := refusedTopic(err.Reason)
		if !ok {
			return nil, 0
		}
		return func(rec *relay.Record) error {
			if rec.RoutingKey == topic {
				return relay.Refuse(relay.ReasonRejected, fmt.Errorf("the user's topic permissions on exchange %q do not allow routing key %q: see rabbitmqctl set_topic_permissions", c.Exchange, topic))
			}
			return nil
		}, 0
	}
	return nil, 0
}

// publishError is why a channel, or its connection, was closed under a batch. All of these are
// transient.
func (c Config) publishError(err *amqp.Error) error {
	switch {
	case err == nil:
		return errors.New("connection closed before the confirm")
	case err.Code == amqp.NotFound:
		// The exchange was deleted while we run.
		return fmt.Errorf("publish to exchange %q: %w (it is declared again)", c.Exchange, reason(err))
	case err.Code == amqp.AccessRefused:
		// The user lost, or never had, the permission to write. Nothing goes through until that is
		// fixed.
		return fmt.Errorf("publish to exchange %q: %w (grant the user of %s the permission to write to it: %s)", c.Exchange, reason(err), c.Said("RABBITMQ_URL"), c.permit(c.vhost()))
	case err.Server:
		// A broker that shuts down (320), an operator who closes the connection, an internal error
		// (541).
		return fmt.Errorf("publish to exchange %q: %w", c.Exchange, reason(err))
	}
	// Our end noticed: end of file, reset, a write that took too long, no heartbeat.
	return fmt.Errorf("connection lost before the confirm: %s", err.Reason)
}

// reason shortens amqp091's errors to code and text.
func reason(err error) error {
	var ae *amqp.Error
	if !errors.As(err, &ae) {
		return err
	}
	return &brokerError{ae}
}

// brokerError is an *amqp.Error that reads better.
type brokerError struct{ err *amqp.Error }

func (e *brokerError) Error() string { return fmt.Sprintf("%s (%d)", e.err.Reason, e.err.Code) }
func (e *brokerError) Unwrap() error { return e.err }

func unroutable(exchange, key, text string) error {
	return relay.Refuse(relay.ReasonUnroutable, fmt.Errorf("%s: no queue is bound to exchange %q for routing key %q: bind one, or give the exchange an alternate-exchange", text, exchange, key))
}

func refuseSize(size, limit int64, what string) error {
	return &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: size, Limit: limit, Err: errors.New(what)}
}

// The broker names the message only in a text: rabbit_channel.erl, check_msg_size and
// check_topic_authorisation. The tests ask a real broker for these texts.
var (
	tooLargeText = regexp.MustCompile(`message size (\d+) (?:is )?larger than (?:configured )?max size (\d+)`)
	// at the front: the texts are cut at 255 bytes
	topicText        = regexp.MustCompile(`access to topic '`)
	refusedTopicText = regexp.MustCompile(`access to topic '(.*)' in exchange '`)
)

// tooLarge reads the size and the limit from the text of a PRECONDITION_FAILED.
func tooLarge(text string) (size, limit int64, ok bool) {
	m := tooLargeText.FindStringSubmatch(text)
	if m == nil {
		return 0, 0, false
	}
	size, sizeErr := strconv.ParseInt(m[1], 10, 64)
	limit, limitErr := strconv.ParseInt(m[2], 10, 64)
	return size, limit, sizeErr == nil && limitErr == nil && limit > 0
}

// refusedTopic reads the routing key from the text of an ACCESS_REFUSED.
func refusedTopic(text string) (string, bool) {
	m := refusedTopicText.FindStringSubmatch(text)
	if m == nil {
		return "", false
	}
	return m[1], true
}
