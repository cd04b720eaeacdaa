package kafka

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// Every kind of listener takes records and passes the check.
func TestListeners(t *testing.T) {
	k := brokertest.Kafka(t)
	tls := func(c *Config) { c.SecurityProtocol, c.TLSCAFile = "SSL", k.CAFile }
	login := func(mechanism string) func(*Config) {
		return func(c *Config) {
			c.SecurityProtocol, c.SASLMechanism, c.SASLUsername, c.SASLPassword = "SASL_PLAINTEXT", mechanism, k.User, k.Password
		}
	}
	both := func(mechanism string) func(*Config) {
		return func(c *Config) { login(mechanism)(c); c.SecurityProtocol, c.TLSCAFile = "SASL_SSL", k.CAFile }
	}
	for name, tc := range map[string]struct {
		addr   string
		change func(*Config)
	}{
		"plaintext":                {k.Plaintext, func(*Config) {}},
		"tls":                      {k.SSL, tls},
		"tls, client certificate":  {k.MTLS, func(c *Config) { tls(c); c.TLSCertFile, c.TLSKeyFile = k.ClientCert, k.ClientKey }},
		"tls, other name":          {k.SSL, func(c *Config) { tls(c); c.TLSServerName = "localhost" }},
		"plain":                    {k.SASLPlaintext, login("PLAIN")},
		"scram-sha-256":            {k.SASLPlaintext, login("SCRAM-SHA-256")},
		"scram-sha-512":            {k.SASLPlaintext, login("SCRAM-SHA-512")},
		"tls and plain":            {k.SASLSSL, both("PLAIN")},
		"tls and scram-sha-256":    {k.SASLSSL, both("SCRAM-SHA-256")},
		"tls and scram-sha-512":    {k.SASLSSL, both("SCRAM-SHA-512")},
		"first address is no good": {k.Plaintext, func(c *Config) { c.Brokers = []string{"127.0.0.1:1", k.Plaintext} }},
	} {
		t.Run(name, func(t *testing.T) {
			topic := createTopic(t, k.Plaintext, 3)
			s := newSink(t, tc.addr, tc.change)
			if err := s.Check(testContext(t)); err != nil {
				t.Errorf("check: %v", err)
			}
			batch := sinktest.Interleave(sinktest.Records(topic, "a", 0, 50), sinktest.Records(topic, "b", 0, 50))
			if err := s.Publish(testContext(t), batch); err != nil {
				t.Fatal(err)
			}
			sinktest.CheckOrder(t, delivereds(consume(t, k.Plaintext, topic)), map[string]int{"a": 50, "b": 50}, false)
		})
	}
}

// An error about security leads to the variable, and never has the password.
func TestListenersRefuse(t *testing.T) {
	k := brokertest.Kafka(t)
	const wrong = "wr0ng-Passw0rd"
	otherCA := filepath.Join(t.TempDir(), "other")
	certs, err := brokertest.NewCerts(otherCA)
	if err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and sends nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	sasl := func(protocol, mechanism, password string) func(*Config) {
		return func(c *Config) {
			c.SecurityProtocol, c.SASLMechanism, c.SASLUsername, c.SASLPassword = protocol, mechanism, k.User, password
			if protocol == "SASL_SSL" {
				c.TLSCAFile = k.CAFile
			}
		}
	}
	for name, tc := range map[string]struct {
		addr   string
		change func(*Config)
		want   []string
	}{
		"wrong password, PLAIN":         {k.SASLPlaintext, sasl("SASL_PLAINTEXT", "PLAIN", wrong), []string{"SASL login", "KAFKA_SASL_PASSWORD"}},
		"wrong password, SCRAM-SHA-256": {k.SASLSSL, sasl("SASL_SSL", "SCRAM-SHA-256", wrong), []string{"SASL login", "KAFKA_SASL_PASSWORD"}},
		"wrong password, SCRAM-SHA-512": {k.SASLPlaintext, sasl("SASL_PLAINTEXT", "SCRAM-SHA-512", wrong), []string{"SASL login", "KAFKA_SASL_PASSWORD"}},
		"no login where one is wanted":  {k.SASLPlaintext, func(*Config) {}, []string{"SASL login", "KAFKA_SECURITY_PROTOCOL=PLAINTEXT"}},
		"login where none is wanted":    {k.Plaintext, sasl("SASL_PLAINTEXT", "PLAIN", k.Password), []string{"SASL", "KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT"}},
		"no TLS where it is wanted":     {k.SSL, func(*Config) {}, []string{"TLS", "KAFKA_SECURITY_PROTOCOL=PLAINTEXT"}},
		"TLS where there is none":       {k.Plaintext, func(c *Config) { c.SecurityProtocol, c.TLSCAFile = "SSL", k.CAFile }, []string{"TLS", "KAFKA_SECURITY_PROTOCOL=SSL"}},
		"authority not known":           {k.SSL, func(c *Config) { c.SecurityProtocol = "SSL" }, []string{"RELAY_KAFKA_TLS_CA_FILE"}},
		"other authority":               {k.SSL, func(c *Config) { c.SecurityProtocol, c.TLSCAFile = "SSL", certs.CAFile }, []string{"RELAY_KAFKA_TLS_CA_FILE"}},
		"other name":                    {k.SSL, func(c *Config) { c.SecurityProtocol, c.TLSCAFile, c.TLSServerName = "SSL", k.CAFile, "kafka.example" }, []string{"RELAY_KAFKA_TLS_SERVER_NAME"}},
		"no client certificate":         {k.MTLS, func(c *Config) { c.SecurityProtocol, c.TLSCAFile = "SSL", k.CAFile }, []string{"RELAY_KAFKA_TLS_CERT_FILE"}},
		"nothing answers":               {silent.Addr().String(), func(c *Config) { c.DialTimeout = 200 * time.Millisecond }, []string{"no answer in time"}},
		"no such host":                  {"no-such-host.invalid:9092", func(*Config) {}, []string{"no-such-host.invalid", "KAFKA_BOOTSTRAP_SERVERS"}},
	} {
		t.Run(name, func(t *testing.T) {
			var logged bytes.Buffer
			cfg := DefaultConfig()
			cfg.Brokers = []string{tc.addr}
			tc.change(&cfg)
			s, err := New(cfg, hclog.New(&hclog.LoggerOptions{Output: &logged, Level: hclog.Trace}))
			if err != nil {
				t.Fatal(err)
			}
			for what, err := range map[string]error{
				"check": s.Check(testContext(t)), "publish": s.Publish(testContext(t), values("t", "a", 2)),
			} {
				if err == nil {
					t.Errorf("%s: no error", what)
					continue
				}
				if setup := (*relay.SetupError)(nil); !errors.As(err, &setup) || setup.Fix == "" || strings.Contains(setup.Fix, "firewall") != (name == "nothing answers") {
					t.Errorf("%s: no fix of its own: %v", what, setup)
				}
				for _, part := range append(tc.want, tc.addr) {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%s: %q does not have %q", what, err, part)
					}
				}
				if strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), k.Password) {
					t.Errorf("%s: %q shows the password", what, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if strings.Contains(logged.String(), wrong) || strings.Contains(logged.String(), k.Password) {
				t.Errorf("the log shows the password: %s", logged.String())
			}
		})
	}
}

// Certificates are read at every connection, so a rotated file needs no restart.
func TestCertificatesRotate(t *testing.T) {
	k := brokertest.Kafka(t)
	dir := t.TempDir()
	other, err := brokertest.NewCerts(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"ca": other.CAFile, "cert": other.ClientCert, "key": other.ClientKey}
	install := func() {
		for name, from := range files {
			data, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	install()
	s := newSink(t, k.MTLS, func(c *Config) {
		c.SecurityProtocol, c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = "SSL", filepath.Join(dir, "ca"), filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	})
	if err := s.Check(testContext(t)); err == nil {
		t.Error("check passed with another authority's certificates")
	}
	files = map[string]string{"ca": k.CAFile, "cert": k.ClientCert, "key": k.ClientKey}
	install()
	if err := s.Check(testContext(t)); err != nil {
		t.Errorf("check with the new certificates: %v", err)
	}
}

// New reports what is wrong with files and credentials, by the variable.
func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"RELAY_KAFKA_TLS_CA_FILE":   func(c *Config) { c.SecurityProtocol, c.TLSCAFile = "SSL", filepath.Join(dir, "missing") },
		"holds no certificate":      func(c *Config) { c.SecurityProtocol, c.TLSCAFile = "SSL", empty },
		"RELAY_KAFKA_TLS_CERT_FILE": func(c *Config) { c.SecurityProtocol, c.TLSCertFile, c.TLSKeyFile = "SSL", empty, empty },
		"SASLprep": func(c *Config) {
			c.SecurityProtocol, c.SASLMechanism, c.SASLUsername, c.SASLPassword = "SASL_PLAINTEXT", "SCRAM-SHA-256", "u", "s3cret\x00"
		},
		"KAFKA_SECURITY_PROTOCOL": func(c *Config) { c.SecurityProtocol = "" },
	} {
		c := validConfig()
		change(&c)
		s, err := New(c, nil)
		if err == nil {
			_ = s.Close()
			t.Errorf("no error, want one about %s", want)
			continue
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: want %q and no password", err, want)
		}
	}
}

// Opening a connection ends with the context, however far it has come.
func TestDialEndsWithContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := newSink(t, ln.Addr().String(), func(c *Config) { c.DialTimeout = time.Hour })
	ctx, cancel := context.WithCancel(testContext(t))
	result := make(chan error, 1)
	go func() { result <- s.Check(ctx) }()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	if err := <-result; err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("got %v, want that the context was cancelled", err)
	}
}
