package aws

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/relay"
)

// entry is a message of a batch request.
type entry struct {
	at           int // of its record in the batch
	group, dedup string
	body         string
	attributes   map[string]string
	size         int
}

const (
	// noKey is the group of records without a key, which keep their order.
	noKey = "no-key"
	// hashed begins the group of a key that no group can be.
	hashed = "sha256-"
	// longest is how many characters a group and a deduplication id may have.
	longest = 128

	mostAttributes = 10
	// headersAttribute has the headers that are no attributes, as a JSON object.
	headersAttribute = "relay-headers"
	// bodyAttribute says how a body is encoded that is no text which AWS takes.
	bodyAttribute = "relay-body-encoding"
	stringType    = "String"
)

// newEntry makes the message of a record.
func newEntry(at int, rec *relay.Record) *entry {
	e := &entry{at: at, group: group(rec.MessageKey()), dedup: rec.EventID.String(), body: string(rec.Value)}
	for i := range rec.Headers {
		if rec.Headers[i].Key == relay.ReplayedHeader {
			e.dedup = dedup(e.dedup, rec.Headers[i].Value)
		}
	}
	room := mostAttributes
	encoded := !isText(e.body)
	if encoded {
		e.body = base64.StdEncoding.EncodeToString(rec.Value)
		if e.body == "" {
			e.body = "=" // a body has one character at least; this decodes to nothing
		}
		room--
	}
	e.attributes = attributes(rec.Headers, room)
	if encoded {
		e.attributes[bodyAttribute] = "base64"
	}
	e.size = len(e.body)
	for name, value := range e.attributes {
		e.size += len(name) + len(stringType) + len(value)
	}
	return e
}

// group is the message group of a key: up to 128 letters, digits and ASCII punctuation.
func group(key string) string {
	switch {
	case key == "":
		return noKey
	case len(key) <= longest && !strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }):
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return hashed + hex.EncodeToString(sum[:])
}

// dedup is the id of an event that is delivered once more because a person wants it: without the
// time of that AWS would drop it.
func dedup(id, replayed string) string {
	sum := sha256.Sum256([]byte(replayed))
	return id + "." + hex.EncodeToString(sum[:8])
}

// attributes are the headers, in order, as far as there is room and AWS takes name and value. The
// rest is in one attribute, as a JSON object.
func attributes(headers []relay.Header, room int) map[string]string {
	all := make(map[string]string, min(len(headers)+1, mostAttributes))
	fits := func(h *relay.Header) bool {
		return isAttributeName(h.Key) && h.Key != headersAttribute && h.Key != bodyAttribute && isText(h.Value)
	}
	rest := len(headers) > room
	for i := range headers {
		rest = rest || !fits(&headers[i])
	}
	if rest {
		room--
	}
	others := make(map[string]string)
	for i := range headers {
		if h := &headers[i]; len(all) < room && fits(h) {
			all[h.Key] = h.Value
		} else {
			others[h.Key] = h.Value
		}
	}
	if len(others) > 0 {
		all[headersAttribute] = asciiJSON(others)
	}
	return all
}

var attributeName = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// isAttributeName reports whether an attribute may be called so (SQS Developer Guide, "Message
// attribute components").
func isAttributeName(name string) bool {
	lower := strings.ToLower(name)
	return len(name) <= 256 && attributeName.MatchString(name) && !strings.HasPrefix(lower, "aws.") && !strings.HasPrefix(lower, "amazon.")
}

// isText reports whether a body or a value may have this text: one character at least, and those of
// XML 1.0 only (SQS API Reference, SendMessage).
func isText(s string) bool {
	if s == "" || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			return false
		}
	}
	return true
}

// asciiJSON is a JSON object of texts, with escapes for all that is not ASCII.
func asciiJSON(m map[string]string) string {
	text, err := json.Marshal(m)
	if err != nil { // texts can be written
		panic(fmt.Sprintf("aws: headers as JSON: %v", err))
	}
	var b strings.Builder
	for _, r := range string(text) {
		switch {
		case r < utf8.RuneSelf:
			b.WriteRune(r)
		case r > 0xFFFF:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xD800+r>>10, 0xDC00+r&0x3FF)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
