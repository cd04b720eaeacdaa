package rabbitmq

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestValidate(t *testing.T) {
	certs, err := brokertest.NewCerts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	const amqps = "amqps://u:hidden@localhost"
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   []string // none: valid
	}{
		{"defaults", func(*Config) {}, nil},
		{"no scheme", func(c *Config) { c.URL = "localhost:5672" }, []string{"RABBITMQ_URL", "amqp://"}},
		{"another scheme", func(c *Config) { c.URL = "https://u:hidden@localhost" }, []string{"RABBITMQ_URL", "amqp://"}},
		{"empty URL", func(c *Config) { c.URL = "" }, []string{"RABBITMQ_URL"}},
		{"unescaped password", func(c *Config) { c.URL = "amqp://u:hidden/x@localhost" }, []string{"RABBITMQ_URL", "percent-encoded"}},
		{"bad escape", func(c *Config) { c.URL = "amqp://u:hidden%zz@localhost" }, []string{"RABBITMQ_URL", "percent-encoded"}},
		{"space", func(c *Config) { c.URL = "amqp://u:hidden @localhost" }, []string{"RABBITMQ_URL", "percent-encoded"}},
		{"control character", func(c *Config) { c.URL = "amqp://u:hidden\n@localhost" }, []string{"RABBITMQ_URL"}},
		{"port", func(c *Config) { c.URL = "amqp://u:hidden@localhost:99999" }, []string{"RABBITMQ_URL", "port"}},
		{"heartbeat parameter", func(c *Config) { c.URL = "amqp://u:hidden@localhost?heartbeat=hidden" }, []string{"RABBITMQ_URL"}},
		{"exchange", func(c *Config) { c.Exchange = "" }, []string{"RABBITMQ_EXCHANGE="}},
		{"long exchange", func(c *Config) { c.Exchange = strings.Repeat("x", 256) }, []string{"RABBITMQ_EXCHANGE="}},
		{"type", func(c *Config) { c.ExchangeType = "" }, []string{"RABBITMQ_EXCHANGE_TYPE"}},
		{"window", func(c *Config) { c.Window = 0 }, []string{"RELAY_RABBITMQ_WINDOW=0"}},
		{"large window", func(c *Config) { c.Window = 1e9 }, []string{"RELAY_RABBITMQ_WINDOW"}},
		{"timeout", func(c *Config) { c.ConfirmTimeout = 0 }, []string{"RELAY_RABBITMQ_CONFIRM_TIMEOUT=0s"}},
		{"hosts", func(c *Config) { c.Hosts = []string{"mq-2", "mq-3:5673", "[::1]:5672", "::1", "10.0.0.1"} }, nil},
		{"user in hosts", func(c *Config) { c.Hosts = []string{"u:hidden@mq-2"} }, []string{"RELAY_RABBITMQ_HOSTS: carries a user"}},
		{"scheme in hosts", func(c *Config) { c.Hosts = []string{"amqp://mq-2"} }, []string{"RELAY_RABBITMQ_HOSTS: carries a user, a path or a scheme"}},
		{"no host in hosts", func(c *Config) { c.Hosts = []string{"mq-2", ""} }, []string{"RELAY_RABBITMQ_HOSTS: a host is missing"}},
		{"port in hosts", func(c *Config) { c.Hosts = []string{"mq-2:99999"} }, []string{"RELAY_RABBITMQ_HOSTS: want host or host:port"}},
		{"two hosts in the URL", func(c *Config) { c.URL = "amqp://u:hidden@mq-1,mq-2/" }, []string{"RABBITMQ_URL", "RELAY_RABBITMQ_HOSTS"}},
		{"mechanism", func(c *Config) { c.SASLMechanism = "SCRAM" }, []string{"RELAY_RABBITMQ_SASL_MECHANISM=SCRAM: want PLAIN or EXTERNAL"}},
		{"EXTERNAL without TLS", func(c *Config) { c.SASLMechanism = "EXTERNAL" }, []string{"RELAY_RABBITMQ_SASL_MECHANISM=EXTERNAL", "amqps://"}},
		{"EXTERNAL without a certificate", func(c *Config) { c.URL, c.SASLMechanism = amqps, "EXTERNAL" }, []string{"RELAY_RABBITMQ_SASL_MECHANISM=EXTERNAL", "RELAY_RABBITMQ_TLS_CERT_FILE"}},
		{"EXTERNAL", func(c *Config) {
			c.URL, c.SASLMechanism, c.TLSCertFile, c.TLSKeyFile = "amqps://localhost", "EXTERNAL", certs.ClientCert, certs.ClientKey
		}, nil},
		{"everything at once", func(c *Config) { *c = Config{URL: "hidden"} }, []string{"RABBITMQ_URL", "RABBITMQ_EXCHANGE=", "RABBITMQ_EXCHANGE_TYPE", "RELAY_RABBITMQ_WINDOW", "RELAY_RABBITMQ_CONFIRM_TIMEOUT"}},
		{"TLS", func(c *Config) {
			c.URL, c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = amqps, certs.CAFile, certs.ClientCert, certs.ClientKey
		}, nil},
		{"TLS without amqps", func(c *Config) { c.TLSCAFile, c.TLSServerName = certs.CAFile, "x" }, []string{"RELAY_RABBITMQ_TLS_CA_FILE", "RELAY_RABBITMQ_TLS_SERVER_NAME", "amqps://"}},
		{"no CA file", func(c *Config) { c.URL, c.TLSCAFile = amqps, "/no/such.pem" }, []string{"RELAY_RABBITMQ_TLS_CA_FILE", "/no/such.pem"}},
		{"no certificate in it", func(c *Config) { c.URL, c.TLSCAFile = amqps, empty }, []string{"RELAY_RABBITMQ_TLS_CA_FILE", "PEM"}},
		{"no key", func(c *Config) { c.URL, c.TLSCertFile = amqps, certs.ClientCert }, []string{"RELAY_RABBITMQ_TLS_KEY_FILE", "both"}},
		{"wrong key", func(c *Config) { c.URL, c.TLSCertFile, c.TLSKeyFile = amqps, certs.ClientCert, empty }, []string{"RELAY_RABBITMQ_TLS_CERT_FILE", "RELAY_RABBITMQ_TLS_KEY_FILE"}},
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
			noSecret(t, err.Error())
			if _, err := New(cfg, nil); err == nil {
				t.Error("New takes it")
			}
		})
	}
}

func TestTLS(t *testing.T) {
	broker := brokertest.RabbitMQ(t)
	r := newRoom(t, broker.URL, nil)
	other, err := brokertest.NewCerts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg := r.config()
	cfg.URL = broker.TLSURL
	want := 0
	for _, tc := range []struct {
		name   string
		change func(*Config)
		fails  []string
	}{
		{"CA", func(c *Config) { c.TLSCAFile = broker.CAFile }, nil},
		{"CA and client certificate", func(c *Config) {
			c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = broker.CAFile, broker.ClientCert, broker.ClientKey
		}, nil},
		{"CA in the URL", func(c *Config) { c.URL += "?cacertfile=" + broker.CAFile }, nil},
		{"no CA", func(*Config) {}, []string{"RELAY_RABBITMQ_TLS_CA_FILE"}},
		{"wrong CA", func(c *Config) { c.TLSCAFile = other.CAFile }, []string{"RELAY_RABBITMQ_TLS_CA_FILE"}},
		{"server name", func(c *Config) { c.TLSCAFile, c.TLSServerName = broker.CAFile, "broker.example" }, []string{"RELAY_RABBITMQ_TLS_SERVER_NAME", "broker.example"}},
		{"client certificate of another CA", func(c *Config) {
			c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = broker.CAFile, other.ClientCert, other.ClientKey
		}, []string{"RELAY_RABBITMQ_TLS_CERT_FILE"}},
		{"EXTERNAL", func(c *Config) {
			c.URL, c.SASLMechanism = strings.Replace(c.URL, broker.Password, "hidden", 1), "EXTERNAL"
			c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = broker.CAFile, broker.ClientCert, broker.ClientKey
		}, nil},
		{"EXTERNAL, the certificate is nobody's", func(c *Config) {
			dir := filepath.Dir(broker.CAFile)
			c.SASLMechanism, c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = "EXTERNAL", broker.CAFile, filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
		}, []string{"the broker refused the login", "RELAY_RABBITMQ_TLS_CERT_FILE names no user"}},
		{"plain port", func(c *Config) {
			c.URL, c.TLSCAFile = strings.Replace(broker.URL, "amqp:", "amqps:", 1), broker.CAFile
		}, []string{"does not speak TLS"}},
		{"no TLS to the TLS port", func(c *Config) { c.URL = strings.Replace(broker.TLSURL, "amqps:", "amqp:", 1) }, []string{"amqps://"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := cfg
			tc.change(&cfg)
			s, log := newLoggedSink(t, cfg)
			start := time.Now()
			err := s.Publish(soon(t), sinktest.Records(bound, "k", want, 3))
			if tc.fails == nil {
				if err != nil {
					t.Fatal(err)
				}
				want += 3
				return
			}
			transient(t, err, append(tc.fails, "127.0.0.1")...)
			if strings.Contains(err.Error()+log.String(), broker.Password) {
				t.Errorf("the password shows in %q or the log", err)
			}
			if took := time.Since(start); took > 2*connectTimeout {
				t.Errorf("took %s", took)
			}
		})
	}
	sinktest.CheckOrder(t, r.consume(t), map[string]int{"k": want}, false)
}

func TestLoginRefused(t *testing.T) {
	broker := brokertest.RabbitMQ(t)
	r := newRoom(t, broker.URL, nil)
	for _, tc := range []struct{ name, old, new, want string }{
		{"password", ":" + broker.Password + "@", ":hidden@", "user, password"},
		{"user", "//" + broker.User + ":", "//hidden:", "user, password"},
		{"vhost", "/", "/nowhere", "vhost"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := r.config()
			at := strings.LastIndex(cfg.URL, tc.old)
			cfg.URL = cfg.URL[:at] + tc.new + cfg.URL[at+len(tc.old):]
			s, log := newLoggedSink(t, cfg)
			err := s.Publish(soon(t), sinktest.Records(bound, "k", 0, 1))
			transient(t, err, "RABBITMQ_URL", "127.0.0.1", tc.want)
			noSecret(t, strings.ReplaceAll(err.Error()+log.String(), broker.User, ""))
			if strings.Contains(err.Error()+log.String(), broker.Password) {
				t.Errorf("the password shows in %q or the log", err)
			}
		})
	}
}

// The broker's alert about our certificate may be read, and the connection closed, while the
// handshake still writes.
func TestHungUpDuringWrite(t *testing.T) {
	cfg := DefaultConfig()
	cfg.TLSCertFile = "client.pem"
	err := cfg.connectError(amqp.URI{Scheme: "amqps", Host: "127.0.0.1", Port: 5671, Vhost: "/"}, &net.OpError{Op: "write", Net: "tcp", Err: net.ErrClosed})
	transient(t, err, "RELAY_RABBITMQ_TLS_CERT_FILE", "127.0.0.1")
}
