package nats

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/sagaz-relay/relay/relay"
)

const (
	msgIDHeader  = nats.MsgIdHdr
	streamHeader = nats.ExpectedStreamHdr
	// maxSubject is far below the server's max_control_line (4096), which a subject shares with the
	// reply's: a server closes the connection of who exceeds it.
	maxSubject = 1024
)

// legalSubject returns what is wrong with a subject to publish to; empty: nothing.
func legalSubject(subject string) string {
	switch {
	case subject == "":
		return "it is empty"
	case len(subject) > maxSubject:
		return fmt.Sprintf("it has %d bytes, want at most %d", len(subject), maxSubject)
	case strings.ContainsFunc(subject, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return "it has a space or a control character"
	}
	for token := range strings.SplitSeq(subject, ".") {
		switch token {
		case "":
			return "it begins or ends with a dot, or has two in a row"
		case "*", ">":
			return "it has a wildcard"
		}
	}
	return ""
}

// forbidden returns what is wrong with a record's subject. What begins with $ are requests to the
// servers: an event's type must not be able to delete a stream.
func (c *Config) forbidden(subject string) string {
	if problem := legalSubject(subject); problem != "" {
		return problem
	}
	if strings.HasPrefix(subject, "$") {
		return "what begins with $ are the servers' own subjects"
	}
	if strings.HasPrefix(subject, "_INBOX.") || strings.HasPrefix(subject, c.InboxPrefix+".") {
		return "that is where answers are sent to"
	}
	return ""
}

// CheckRoute reports a subject that no message can have.
func (c *Config) CheckRoute(r relay.Route) error {
	if problem := c.forbidden(r.Topic); problem != "" {
		return fmt.Errorf("subject %.100q: %s", r.Topic, problem)
	}
	return nil
}

// message makes the message of a record. The error is the record's own fault.
func (s *Sink) message(rec *relay.Record) (*nats.Msg, error) {
	if problem := s.cfg.forbidden(rec.Topic); problem != "" {
		return nil, relay.Refuse(relay.ReasonUnknownTopic, fmt.Errorf("subject %.100q: %s: change event_type, RELAY_TOPIC or the topic of its rule", rec.Topic, problem))
	}
	header := make(nats.Header, len(rec.Headers)+2)
	id := rec.EventID.String()
	for _, h := range rec.Headers {
		if len(h.Key) >= 5 && strings.EqualFold(h.Key[:5], "Nats-") {
			return nil, relay.Refuse(relay.ReasonEncode, fmt.Errorf("header %.60s: NATS takes what begins with Nats- for a command: want another name for it", h.Key))
		}
		if h.Key == relay.ReplayedHeader { // the stream may have seen the event's id already
			id += "/" + h.Value
		}
		name, value := header1(rec, h)
		header[name] = []string{value}
	}
	if name := s.Name(); name != kind {
		id += "@" + name
	}
	header[msgIDHeader] = []string{id}
	if s.cfg.Stream != "" {
		header[streamHeader] = []string{s.cfg.Stream}
	}
	return &nats.Msg{Subject: rec.Topic, Header: header, Data: rec.Value}, nil
}

// header1 is a header as NATS carries it. The attributes of a CloudEvent are named by its NATS
// binding, in which content-type means that the body has the whole event.
func header1(rec *relay.Record, h relay.Header) (name, value string) {
	if rec.CloudEvent {
		switch attribute, ok := strings.CutPrefix(h.Key, relay.CloudEventPrefix); {
		case ok && !strings.ContainsFunc(attribute, oddName): // else it is no attribute's name
			return "ce-" + attribute, percent(h.Value, odd)
		case h.Key == relay.CloudEventContentType && !strings.HasPrefix(h.Value, "application/cloudevents"):
			return "ce-datacontenttype", percent(h.Value, odd)
		}
	}
	if plain(h.Key, h.Value) {
		return h.Key, h.Value
	}
	return percent(h.Key, oddName) + "*", "UTF-8''" + percent(h.Value, oddValue)
}

// plain reports whether every client reads the header as it is. A value has no line break, is read
// without the space around it, and outside of ASCII not by all clients. A name that ends with a * is
// the mark of one that is not plain.
func plain(name, value string) bool {
	if name == "" || strings.ContainsFunc(name, oddName) {
		return false
	}
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) && strings.Trim(value, " ") == value
}

// oddName are characters that the client sends in no name (nats.go: makeValidHeaderKeyAsciiSet), and
// those of RFC 8187.
func oddName(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`"()/,:;<=>?@[\]{}`, r) || strings.ContainsRune(`*%'`, r)
}

// oddValue is what RFC 8187 wants encoded in an ext-value: all but letters, digits and these.
func oddValue(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$&+-.^_`|~", r))
}

// odd is what CloudEvents' HTTP and NATS bindings want encoded.
func odd(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '%' }

// percent encodes the bytes of the characters for which is says so.
func percent(s string, is func(rune) bool) string {
	if !strings.ContainsFunc(s, is) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if !is(r) {
			b.WriteRune(r)
			continue
		}
		for _, c := range []byte(string(r)) {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// Headers are the headers of a message as the record had them: those that NATS cannot carry as they
// are decoded, those of the sink left out.
func Headers(header map[string][]string) (headers []relay.Header, err error) {
	for name, values := range header {
		if name == msgIDHeader || name == streamHeader || len(values) == 0 {
			continue
		}
		value := values[0]
		if encoded, ok := strings.CutSuffix(name, "*"); ok {
			if value, ok = strings.CutPrefix(value, "UTF-8''"); !ok {
				return nil, errors.New("a header that ends with * does not begin with UTF-8''")
			}
			if name, err = url.PathUnescape(encoded); err == nil {
				value, err = url.PathUnescape(value)
			}
			if err != nil {
				return nil, err
			}
		}
		headers = append(headers, relay.Header{Key: name, Value: value})
	}
	return headers, nil
}
