package kafka

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func validConfig() Config {
	c := DefaultConfig()
	c.Brokers = []string{"kafka-1:9092", "kafka-2:9092"}
	return c
}

func TestConfigValidate(t *testing.T) {
	login := func(c *Config) {
		c.SecurityProtocol, c.SASLMechanism, c.SASLUsername, c.SASLPassword = "SASL_SSL", "PLAIN", "u", "s3cret"
	}
	for _, tc := range []struct {
		name string
		set  func(*Config)
		want []string // parts of the error; none means valid
	}{
		{"default", func(*Config) {}, nil},
		{"url", func(c *Config) { c.Brokers = []string{"kafka://a:9092"} }, nil},
		{"login", login, nil},
		{"mtls", func(c *Config) {
			c.SecurityProtocol, c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile, c.TLSServerName = "SSL", "ca", "c", "k", "n"
		}, nil},
		{"no brokers", func(c *Config) { c.Brokers = nil }, []string{"KAFKA_BOOTSTRAP_SERVERS", "BROKER_URL", "not set"}},
		{"empty brokers", func(c *Config) { c.Brokers = []string{"", " "} }, []string{"not set"}},
		{"other scheme", func(c *Config) { c.Brokers = []string{"amqp://u:s3cret@h/"} }, []string{"amqp://", "host:port"}},
		{"user in the address", func(c *Config) { c.Brokers = []string{"kafka://u:s3cret@h:9092"} }, []string{"KAFKA_SASL_PASSWORD"}},
		{"bad port", func(c *Config) { c.Brokers = []string{"h:port"} }, []string{"want host:port"}},
		{"path", func(c *Config) { c.Brokers = []string{"h/x"} }, []string{"want host:port"}},
		{"protocol", func(c *Config) { c.SecurityProtocol = "TLS" }, []string{"KAFKA_SECURITY_PROTOCOL=TLS", "SASL_SSL"}},
		{"mechanism", func(c *Config) { login(c); c.SASLMechanism = "GSSAPI" }, []string{"KAFKA_SASL_MECHANISM=GSSAPI", "SCRAM-SHA-512"}},
		{"login without a protocol", func(c *Config) { login(c); c.SecurityProtocol = "PLAINTEXT" }, []string{"KAFKA_SECURITY_PROTOCOL=SASL_SSL", "SASL_PLAINTEXT"}},
		{"login over SSL only", func(c *Config) { login(c); c.SecurityProtocol = "SSL" }, []string{"KAFKA_SECURITY_PROTOCOL=SSL", "SASL_SSL"}},
		{"protocol without a login", func(c *Config) { c.SecurityProtocol = "SASL_PLAINTEXT" }, []string{"KAFKA_SASL_MECHANISM"}},
		{"user only", func(c *Config) { c.SASLUsername = "u" }, []string{"KAFKA_SASL_MECHANISM"}},
		{"no user, no password", func(c *Config) { login(c); c.SASLUsername, c.SASLPassword = "", "" }, []string{"KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"}},
		{"CA without TLS", func(c *Config) { c.TLSCAFile = "ca" }, []string{"RELAY_KAFKA_TLS_CA_FILE", "SSL"}},
		{"certificate without key", func(c *Config) { c.SecurityProtocol, c.TLSCertFile = "SSL", "c" }, []string{"RELAY_KAFKA_TLS_KEY_FILE"}},
		{"compression", func(c *Config) { c.Compression = "brotli" }, []string{"RELAY_KAFKA_COMPRESSION=brotli", "zstd"}},
		{"everything at once", func(c *Config) {
			c.BatchBytes, c.TopicWait, c.RequestTimeout, c.DialTimeout, c.MetadataTTL = 0, -time.Second, 0, 0, 0
		}, []string{
			"RELAY_KAFKA_BATCH_BYTES=0", "RELAY_KAFKA_TOPIC_WAIT=-1s", "RELAY_KAFKA_REQUEST_TIMEOUT=0s", "RELAY_KAFKA_DIAL_TIMEOUT=0s", "RELAY_KAFKA_METADATA_TTL=0s",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := validConfig()
			tc.set(&c)
			err := c.Validate()
			if (err != nil) != (tc.want != nil) {
				t.Fatalf("got %v, want an error: %v", err, tc.want != nil)
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not have %q", err, part)
				}
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%q shows the password", err)
			}
		})
	}
}

func TestConfigAddresses(t *testing.T) {
	c := Config{Brokers: []string{"a:1", " b ", "kafka://c:2/", "[::1]:3", "::1", "10.0.0.1"}}
	got, err := c.addresses()
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a:1", "b:9092", "c:2", "[::1]:3", "[::1]:9092", "10.0.0.1:9092"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The loader reads the tags, so a field without one could never be set.
func TestConfigTags(t *testing.T) {
	seen := map[string]bool{}
	typ := reflect.TypeFor[Config]()
	for i := range typ.NumField() {
		f := typ.Field(i)
		if !f.IsExported() || f.Anonymous {
			continue
		}
		name := f.Tag.Get("env")
		if !strings.HasPrefix(name, "KAFKA_") && !strings.HasPrefix(name, "RELAY_KAFKA_") || seen[name] {
			t.Errorf("%s: variable %q", f.Name, name)
		}
		seen[name] = true
		if secret := f.Tag.Get("secret") == "true"; secret != (f.Name == "SASLPassword") {
			t.Errorf("%s: secret %v", f.Name, secret)
		}
	}
}
