package redact

import "testing"

// Whatever a library returns, what is written is redacted.
func TestRedactor(t *testing.T) {
	var r Redactor
	r.Know([]string{"p@ss/w0rd&1", "sagaz", "abc", "correct-horse-battery", `q"uo\te1`})
	for text, want := range map[string]string{
		"dial p@ss/w0rd&1 failed":                     "dial (hidden) failed",
		"p%40ss%2Fw0rd&1 p%40ss%2Fw0rd%261":           "(hidden) (hidden)",
		`{"error":"p@ss/w0rd\u00261"}`:                `{"error":"(hidden)"}`,
		`{"error":"q\"uo\\te1"}`:                      `{"error":"(hidden)"}`,
		"sagaz-relay abc":                             "sagaz-relay abc",
		"correct-horse-battery":                       "(hidden)",
		"parse amqp://u:other@secret@h/: bad":         "parse amqp://(hidden)@h/: bad",
		"want postgresql://user:password@host:5432/d": "want postgresql://user:password@host:5432/d",
	} {
		if got := r.Text(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	r.Know(nil)
	if got := r.Text("p@ss/w0rd&1"); got != "p@ss/w0rd&1" {
		t.Errorf("got %q of what is no secret any more", got)
	}
}
