package interop

import (
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"
)

// differenceJSON returns where two JSON texts differ, or returns "". Numbers are equal when they
// have the same value, digit for digit, and are both whole or both not.
func differenceJSON(a, b string) string {
	var x, y any
	for text, into := range map[string]*any{a: &x, b: &y} {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if err := d.Decode(into); err != nil {
			return fmt.Sprintf("%v in %.100s", err, text)
		}
	}
	if a == b {
		return ""
	}
	return difference("", x, y)
}

func difference(at string, a, b any) string {
	switch x := a.(type) {
	case json.Number:
		y, ok := b.(json.Number)
		if ok && x == y {
			return ""
		}
		p, okP := new(big.Rat).SetString(string(x))
		q, okQ := new(big.Rat).SetString(string(y))
		if !ok || !okP || !okQ || p.Cmp(q) != 0 || whole(x) != whole(y) {
			return fmt.Sprintf("%s: %v and %v", at, a, b)
		}
		return ""
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok || len(x) != len(y) {
			return fmt.Sprintf("%s: %.200v and %.200v", at, a, b)
		}
		for key, value := range x {
			other, ok := y[key]
			if !ok {
				return fmt.Sprintf("%s: %q is in one of them", at, key)
			}
			if d := difference(at+"."+key, value, other); d != "" {
				return d
			}
		}
		return ""
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			return fmt.Sprintf("%s: %.200v and %.200v", at, a, b)
		}
		for i := range x {
			if d := difference(fmt.Sprintf("%s[%d]", at, i), x[i], y[i]); d != "" {
				return d
			}
		}
		return ""
	}
	if !reflect.DeepEqual(a, b) {
		return fmt.Sprintf("%s: %.200v and %.200v", at, a, b)
	}
	return ""
}

// whole reports whether a number is an integer for those that, as Python, go by how it is written.
func whole(n json.Number) bool { return !strings.ContainsAny(string(n), ".eE") }

func TestDifferenceJSON(t *testing.T) {
	for _, c := range []struct {
		a, b  string
		equal bool
	}{
		{`{"a": 1, "b": [2, null]}`, `{"b":[2,null],"a":1}`, true},
		{`{"n": 0.0000001}`, `{"n": 1e-07}`, true},
		{`"\u017e\ud83d\udc0e"`, `"ž🐎"`, true},
		{`10000000000000000000000001`, `10000000000000000000000000`, false},
		{`12345678901234567.123456789`, `1.2345678901234568e+16`, false},
		{`1`, `1.0`, false},
		{`{"a": null}`, `{}`, false},
		{`[1]`, `[1, 1]`, false},
		{`"1"`, `1`, false},
	} {
		if got := differenceJSON(c.a, c.b); (got == "") != c.equal {
			t.Errorf("%s and %s: got difference %q", c.a, c.b, got)
		}
	}
}

// headerMap makes a map of headers; a name that occurs twice is an error.
func headerMap(t *testing.T, headers [][2]any) map[string]any {
	t.Helper()
	m := make(map[string]any, len(headers))
	for _, h := range headers {
		name := h[0].(string)
		if _, twice := m[name]; twice {
			t.Errorf("header %q occurs twice", name)
		}
		m[name] = h[1]
	}
	return m
}
