package encode

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/sagaz-relay/relay/relay"
)

// countHeaders guesses how many members the object has; it may guess high.
func countHeaders(object string) int {
	if len(object) <= len("{}") {
		return 0
	}
	return 1 + strings.Count(object, `, "`)
}

var errHeadersEnd = errors.New("the JSON ends too early")

// appendHeaders adds the members of a JSON object, as PostgreSQL renders a jsonb, to headers. A
// member with the name of an existing header takes its place. A value that is not a string is given
// as its JSON text. An empty text and null are no headers; anything else that is not an object is
// an error.
func appendHeaders(headers []relay.Header, object string) ([]relay.Header, error) {
	s := skipSpace(object)
	if s == "" || s == "{}" || s == "null" {
		return headers, nil
	}
	if s[0] != '{' {
		return nil, fmt.Errorf("want a JSON object, got a JSON %s", jsonKind(s[0]))
	}
	base := len(headers)
	s = skipSpace(s[1:])
	if strings.HasPrefix(s, "}") {
		return headers, nil
	}
	for {
		key, rest, err := cutJSONString(s)
		if err != nil {
			return nil, err
		}
		s = skipSpace(rest)
		if !strings.HasPrefix(s, ":") {
			return nil, errHeadersEnd
		}
		s = skipSpace(s[1:])
		var value string
		if strings.HasPrefix(s, `"`) {
			value, s, err = cutJSONString(s)
		} else {
			value, s, err = cutJSONValue(s)
		}
		if err != nil {
			return nil, err
		}
		headers = putHeader(headers, base, key, value)
		s = skipSpace(s)
		switch {
		case strings.HasPrefix(s, ","):
			s = skipSpace(s[1:])
		case strings.HasPrefix(s, "}"):
			return headers, nil
		default:
			return nil, errHeadersEnd
		}
	}
}

const jsonSpace = " \t\r\n"

// skipSpace returns s without the space in front, of which jsonb has one character at most. (TrimLeft
// makes a set of its characters each time.)
func skipSpace(s string) string {
	for s != "" && s[0] <= ' ' && strings.IndexByte(jsonSpace, s[0]) >= 0 {
		s = s[1:]
	}
	return s
}

func header(key, value string) relay.Header { return relay.Header{Key: key, Value: value} }

// putHeader overrides one of the first base headers, or appends: jsonb has no duplicate keys of its
// own.
func putHeader(headers []relay.Header, base int, key, value string) []relay.Header {
	for i := range headers[:base] {
		if headers[i].Key == key {
			headers[i].Value = value
			return headers
		}
	}
	return append(headers, header(key, value))
}

// cutJSONString takes a JSON string off the front of s.
func cutJSONString(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		return "", "", errHeadersEnd
	}
	escaped := false
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			if !escaped {
				return s[1:i], s[i+1:], nil
			}
			var plain string // not value, which would be an allocation of every call then
			if err := json.Unmarshal([]byte(s[:i+1]), &plain); err != nil {
				return "", "", err
			}
			return plain, s[i+1:], nil
		}
	}
	return "", "", errHeadersEnd
}

// cutJSONValue takes a JSON value that is not a string off the front of s, as text.
func cutJSONValue(s string) (text, rest string, err error) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			for i++; i < len(s) && s[i] != '"'; i++ {
				if s[i] == '\\' {
					i++
				}
			}
		case '[', '{':
			depth++
		case ']', '}':
			if depth == 0 {
				return strings.TrimRight(s[:i], jsonSpace), s[i:], nil
			}
			depth--
		case ',':
			if depth == 0 {
				return strings.TrimRight(s[:i], jsonSpace), s[i:], nil
			}
		}
	}
	return "", "", errHeadersEnd
}

func jsonKind(first byte) string {
	switch first {
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "boolean"
	default:
		return "number"
	}
}
