package webhook

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestValidate(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	const good = "https://hooks.example.com/a"
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   []string // none: valid
	}{
		{"defaults with a URL", func(c *Config) { c.URL = good }, nil},
		{"everything", func(c *Config) {
			c.URL = "https://u:hidden%2F@hooks.example.com:8443/a/{topic}?of={topic}&token=hidden"
			c.Secrets, c.Headers = []string{testSecret}, []string{"X-Api-Key=hidden%2C%25", "Cookie=a"}
		}, nil},
		{"no URL", func(*Config) {}, []string{"RELAY_WEBHOOK_URL: not set: want https://host/path"}},
		{"scheme", func(c *Config) { c.URL = "ftp://u:hidden@host" }, []string{"RELAY_WEBHOOK_URL", "http:// or https://"}},
		{"unescaped password", func(c *Config) { c.URL = "https://u:hidden/x@host/" }, []string{"RELAY_WEBHOOK_URL", "percent-encoded"}},
		{"no host", func(c *Config) { c.URL = "https:///hidden" }, []string{"RELAY_WEBHOOK_URL", "host"}},
		{"port", func(c *Config) { c.URL = "https://host:99999/hidden" }, []string{"RELAY_WEBHOOK_URL", "port"}},
		{"metadata", func(c *Config) { c.URL, c.AllowPrivate = "http://169.254.169.254/hidden", true }, []string{"RELAY_WEBHOOK_URL", "link-local, multicast or reserved"}},
		{"metadata as IPv6", func(c *Config) { c.URL = "http://[::ffff:a9fe:a9fe]/hidden" }, []string{"RELAY_WEBHOOK_URL", "link-local, multicast or reserved"}},
		{"field", func(c *Config) { c.URL = "https://host/{hidden}" }, []string{"RELAY_WEBHOOK_URL", "{topic}"}},
		{"field in the host", func(c *Config) { c.URL = "https://{topic}.example.com/" }, []string{"RELAY_WEBHOOK_URL"}},
		{"field in the user", func(c *Config) { c.URL = "https://{topic}:hidden@example.com/" }, []string{"RELAY_WEBHOOK_URL", "percent-encoded"}},
		{"secret without prefix", func(c *Config) { c.URL, c.Secrets = good, []string{testSecret, "hidden"} }, []string{"RELAY_WEBHOOK_SECRETS: number 2", "whsec_"}},
		{"short secret", func(c *Config) { c.URL, c.Secrets = good, []string{"whsec_aGlkZGVu"} }, []string{"RELAY_WEBHOOK_SECRETS: number 1", "24 to 64 bytes"}},
		{"no base64", func(c *Config) { c.URL, c.Secrets = good, []string{"whsec_hidden!hidden!hidden!hidden!hidden!"} }, []string{"RELAY_WEBHOOK_SECRETS: number 1"}},
		{"no ed25519 key", func(c *Config) { c.URL, c.Secrets = good, []string{"whsk_aGlkZGVu"} }, []string{"RELAY_WEBHOOK_SECRETS: number 1", "ed25519"}},
		{"header without value", func(c *Config) { c.URL, c.Headers = good, []string{"hidden"} }, []string{"RELAY_WEBHOOK_HEADERS: number 1", "Name=value"}},
		{"header's name", func(c *Config) { c.URL, c.Headers = good, []string{"a b=hidden"} }, []string{"RELAY_WEBHOOK_HEADERS: number 1"}},
		{"header's value", func(c *Config) { c.URL, c.Headers = good, []string{"X-Key=hidden%zz"} }, []string{"RELAY_WEBHOOK_HEADERS: the value of X-Key"}},
		{"line break in a header", func(c *Config) { c.URL, c.Headers = good, []string{"X-Key=hidden%0d%0aHost: x"} }, []string{"RELAY_WEBHOOK_HEADERS: the value of X-Key"}},
		{"header of HTTP", func(c *Config) { c.URL, c.Headers = good, []string{"Content-Length=5"} }, []string{"RELAY_WEBHOOK_HEADERS: Content-Length"}},
		{"header of the signature", func(c *Config) { c.URL, c.Headers = good, []string{"Webhook-ID=5"} }, []string{"RELAY_WEBHOOK_HEADERS: Webhook-ID"}},
		{"header twice", func(c *Config) { c.URL, c.Headers = good, []string{"x-key=hidden", "X-Key=hidden"} }, []string{"RELAY_WEBHOOK_HEADERS: X-Key occurs twice"}},
		{"two authorizations", func(c *Config) {
			c.URL, c.Headers = "https://u:hidden@host/", []string{"authorization=Bearer%20hidden"}
		}, []string{"RELAY_WEBHOOK_URL has a user", "RELAY_WEBHOOK_HEADERS has Authorization"}},
		{"everything at once", func(c *Config) { *c = Config{URL: "hidden", Secrets: []string{"hidden"}, Timeout: time.Millisecond} }, []string{"RELAY_WEBHOOK_URL", "RELAY_WEBHOOK_SECRETS", "RELAY_WEBHOOK_CONCURRENCY=0", "RELAY_WEBHOOK_TIMEOUT=1ms"}},
		{"concurrency", func(c *Config) { c.URL, c.Concurrency = good, 1001 }, []string{"RELAY_WEBHOOK_CONCURRENCY=1001: want 1 to 1000"}},
		{"TLS without https", func(c *Config) { c.URL, c.TLSCAFile = "http://host", empty }, []string{"RELAY_WEBHOOK_TLS_CA_FILE", "https://"}},
		{"no CA file", func(c *Config) { c.URL, c.TLSCAFile = good, "/no/such.pem" }, []string{"RELAY_WEBHOOK_TLS_CA_FILE", "/no/such.pem"}},
		{"no certificate in it", func(c *Config) { c.URL, c.TLSCAFile = good, empty }, []string{"RELAY_WEBHOOK_TLS_CA_FILE", "PEM"}},
		{"no key", func(c *Config) { c.URL, c.TLSCertFile = good, empty }, []string{"RELAY_WEBHOOK_TLS_KEY_FILE", "both"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := DefaultConfig()
			tc.change(&cfg)
			err := cfg.Validate()
			if (err == nil) != (tc.want == nil) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if err == nil {
				return
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to mention %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "aGlkZGVu") {
				t.Errorf("a secret in %q", err)
			}
			if _, err := New(cfg, nil); err == nil {
				t.Error("New takes it")
			}
		})
	}
}
