package encode

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/relay"
)

func TestAppendHeaders(t *testing.T) {
	base := []relay.Header{header("event_id", "1"), header("content_type", "application/json")}
	for _, tt := range []struct {
		name, object string
		want         []relay.Header // nil: base alone
	}{
		{"Null", "", nil},
		{"JSONNull", "null", nil},
		{"Empty", "{}", nil},
		{"EmptyWithSpace", " { } ", nil},
		{"One", `{"a": "b"}`, []relay.Header{base[0], base[1], header("a", "b")}},
		{"NoSpaces", `{"a":"b","c":"d"}`, []relay.Header{base[0], base[1], header("a", "b"), header("c", "d")}},
		{"OverridesInPlace", `{"content_type": "text/plain", "a": "b"}`, []relay.Header{base[0], header("content_type", "text/plain"), header("a", "b")}},
		{"EscapedNameOverrides", `{"event\u005fid": "2"}`, []relay.Header{header("event_id", "2"), base[1]}},
		{
			"NotStrings", `{"n": -1.50e3, "t": true, "f": false, "z": null}`,
			[]relay.Header{base[0], base[1], header("n", "-1.50e3"), header("t", "true"), header("f", "false"), header("z", "null")},
		},
		{
			"Nested", `{"o": {"k": [1, "],}", "\"}"]}, "a": [], "last": {}}`,
			[]relay.Header{base[0], base[1], header("o", `{"k": [1, "],}", "\"}"]}`), header("a", "[]"), header("last", "{}")},
		},
		{"Escapes", `{"a\"b": "c\\d\n\u20ac\ud83d\udcb6"}`, []relay.Header{base[0], base[1], header(`a"b`, "c\\d\n€💶")}},
		{"Unicode", `{"größe": "💶"}`, []relay.Header{base[0], base[1], header("größe", "💶")}},
		{"LooksLikeSeparators", `{"a": ", \"b\": ", "c": "}"}`, []relay.Header{base[0], base[1], header("a", `, "b": `), header("c", "}")}},
		{"EmptyName", `{"": ""}`, []relay.Header{base[0], base[1], header("", "")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			if want == nil {
				want = base
			}
			got, err := appendHeaders(slices.Clone(base), tt.object)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s:\n got %q, %v\nwant %q", tt.object, got, err, want)
			}
			if n := countHeaders(tt.object); len(got)-len(base) > n && tt.name != "NoSpaces" {
				t.Errorf("%s: %d headers, counted %d: the slice has to grow", tt.object, len(got)-len(base), n)
			}
		})
	}
	for _, bad := range []string{"[]", "1", "true", `"x"`, "{", `{"a"`, `{"a":`, `{"a": `, `{"a": "b`, `{"a": "b"`, `{"a": "b",`, `{"a": "b", }`, `{a: 1}`, `{"a" "b"}`, `{"a\": 1}`} {
		if got, err := appendHeaders(nil, bad); err == nil {
			t.Errorf("%q: got %q, want an error", bad, got)
		}
	}
}

// On every JSON object appendHeaders returns what encoding/json returns; on anything else it does
// not panic.
func FuzzAppendHeaders(f *testing.F) {
	for _, s := range []string{
		"", "null", "{}", "[1]", "12", `{"a": "b"}`, `{"a": {"b": [1, "}", null]}, "c": -1.5e7}`, `{"a\"b": "c\\d\n\u20ac"}`,
		`{"größe": "💶", "event_id": "override"}`, `{"a": "\ud800", "\udc00": 1}`, ` { "a" : [ ] , "b" : "" } `, `{"a": "b"`, `{"a": "\`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, object string) {
		base := []relay.Header{header("event_id", "1"), header("saga_id", "2")}
		got, err := appendHeaders(slices.Clone(base), object)
		if !json.Valid([]byte(object)) || !utf8.ValidString(object) {
			return // PostgreSQL does not send it
		}
		members, isObject := membersOf(t, object)
		if !isObject {
			if err == nil && string(bytes.TrimSpace([]byte(object))) != "null" {
				t.Errorf("%q is no object: got %q, want an error", object, got)
			}
			return
		}
		want, names := slices.Clone(base), map[string]bool{}
		for _, m := range members {
			if names[m.Key] {
				return // jsonb has each name once
			}
			names[m.Key] = true
			if i := slices.IndexFunc(base, func(h relay.Header) bool { return h.Key == m.Key }); i >= 0 {
				want[i] = m
			} else {
				want = append(want, m)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q:\n got %q, %v\nwant %q", object, got, err, want)
		}
	})
}

// membersOf reads an object's members with encoding/json, in their order.
func membersOf(t *testing.T, object string) (members []relay.Header, isObject bool) {
	d := json.NewDecoder(bytes.NewReader([]byte(object)))
	token, err := d.Token()
	if err != nil {
		t.Fatal(err)
	}
	if token != json.Delim('{') {
		return nil, false
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			t.Fatal(err)
		}
		value := string(raw)
		if raw[0] == '"' {
			if err := json.Unmarshal(raw, &value); err != nil {
				t.Fatal(err)
			}
		}
		members = append(members, relay.Header{Key: name.(string), Value: value})
	}
	return members, true
}
