package webhook

import (
	"net/http"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// A record's headers become HTTP headers.
//
//   - Names are written in lower case, since HTTP knows no other difference, and with a hyphen for
//     an underscore: nginx and others drop names with underscores. Bytes that no name can have are
//     percent-encoded. event_id is event-id.
//   - Values are percent-encoded where HTTP cannot carry them: control characters, what is not
//     ASCII, spaces at either end, and the percent sign, so that decoding gives the value. Those of
//     the W3C's trace context are left as they are: they have an encoding of their own.
//   - An attribute of a CloudEvent is ce-id and so on, with values encoded as the HTTP protocol
//     binding of CloudEvents 1.0.2 has it (section 3.1.3.2): spaces and double quotes, too.
//   - content_type or content-type is the body's Content-Type.
//   - A name that HTTP, the signature or RELAY_WEBHOOK_HEADERS uses is sent with row- in front.

// reserved are names that a row cannot set: the connection's, and what a receiver trusts us for.
var reserved = []string{
	"authorization", "connection", "content-length", "cookie", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
	"proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "webhook-id", "webhook-signature", "webhook-timestamp",
}

// traceContext are headers of the W3C.
var traceContext = []string{"traceparent", "tracestate", "baggage"}

// rowPrefix begins the name of a header that may not have its own.
const rowPrefix = "row-"

// addHeaders puts those of the record into h, which has ours.
func addHeaders(h http.Header, rec *relay.Record) {
	contentType := rec.ContentType
	ours := make([]string, 0, 8)
	for name := range h {
		ours = append(ours, strings.ToLower(name))
	}
	for i := range rec.Headers {
		key, value := rec.Headers[i].Key, rec.Headers[i].Value
		attribute, isAttribute := strings.CutPrefix(key, relay.CloudEventPrefix)
		if isAttribute && rec.CloudEvent {
			h[headerName("ce-"+attribute)] = []string{encodeValue(value, isCloudEventPlain)}
			continue
		}
		name := headerName(key)
		switch {
		case name == "content-type":
			contentType = value
			continue
		case slices.Contains(reserved, name) || slices.Contains(ours, name):
			name = rowPrefix + name
		}
		plain := isPlain
		if slices.Contains(traceContext, name) {
			plain = isVisible
		}
		h[name] = append(h[name], encodeValue(value, plain))
	}
	if contentType != "" && !slices.Contains(ours, "content-type") {
		h["content-type"] = []string{encodeValue(contentType, isVisible)}
	}
}

func isVisible(c byte) bool         { return c >= ' ' && c <= '~' }
func isPlain(c byte) bool           { return isVisible(c) && c != '%' }
func isCloudEventPlain(c byte) bool { return isPlain(c) && c != ' ' && c != '"' }

// encodeValue percent-encodes the bytes that are not plain, and spaces at either end, which HTTP
// drops.
func encodeValue(value string, plain func(byte) bool) string {
	encode := func(i int) bool {
		return !plain(value[i]) || value[i] == ' ' && (strings.TrimLeft(value[:i], " ") == "" || strings.TrimRight(value[i:], " ") == "")
	}
	return percent(value, encode)
}

// headerName is the name under which a header is sent.
func headerName(name string) string {
	if name == "" {
		return rowPrefix
	}
	name = strings.ReplaceAll(name, "_", "-")
	return strings.ToLower(percent(name, func(i int) bool { return !isToken(name[i]) }))
}

// isToken reports whether a header's name may have the byte (RFC 9110, 5.6.2). The percent sign may
// be there, and is ours.
func isToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$&'*+-.^_`|~", c) >= 0
}

// percent writes those bytes as %XX. It returns s itself where there is none.
func percent(s string, encode func(i int) bool) string {
	const hex = "0123456789ABCDEF"
	var b []byte
	for i := range len(s) {
		switch {
		case encode(i):
			if b == nil {
				b = append(make([]byte, 0, len(s)+16), s[:i]...)
			}
			b = append(b, '%', hex[s[i]>>4], hex[s[i]&15])
		case b != nil:
			b = append(b, s[i])
		}
	}
	if b == nil {
		return s
	}
	return string(b)
}
