package nats

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestTLS(t *testing.T) {
	certs, err := brokertest.NewCerts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := brokertest.NewCerts(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	block := fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: VERIFY }", certs.ServerCert, certs.ServerKey, certs.CAFile)
	open := natstest.Start(t, strings.Replace(block, "VERIFY", "false", 1))
	strict := natstest.Start(t, strings.Replace(block, "VERIFY", "true", 1))
	plain := natstest.Start(t, "")

	pair, err := tls.LoadX509KeyPair(certs.ClientCert, certs.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	// A test of the relay's own client, not of the certificate.
	subject := newStream(t, strict.URL, nil, nats.Secure(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}))
	address := func(s *natstest.Server, host string) []string {
		return []string{fmt.Sprintf("tls://%s:%d", host, s.Port)}
	}

	for _, c := range []struct {
		name   string
		change func(*Config)
		fix    string // "" when it connects
	}{
		{"client certificate", func(c *Config) {
			c.Servers, c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = address(strict, "127.0.0.1"), certs.CAFile, certs.ClientCert, certs.ClientKey
		}, ""},
		{"authority", func(c *Config) { c.Servers, c.TLSCAFile = address(open, "localhost"), certs.CAFile }, ""},
		{"authority unknown", func(c *Config) { c.Servers = address(open, "127.0.0.1") }, "RELAY_NATS_TLS_CA_FILE"},
		{"plain address, TLS wanted by the server", func(c *Config) { c.Servers = []string{open.URL} }, "RELAY_NATS_TLS_CA_FILE"},
		{"another authority", func(c *Config) { c.Servers, c.TLSCAFile = address(open, "127.0.0.1"), foreign.CAFile }, "RELAY_NATS_TLS_CA_FILE"},
		{"wrong name", func(c *Config) {
			c.Servers, c.TLSCAFile, c.TLSServerName = address(open, "127.0.0.1"), certs.CAFile, "nats.example"
		}, "RELAY_NATS_TLS_SERVER_NAME"},
		{"name given", func(c *Config) {
			c.Servers, c.TLSCAFile, c.TLSServerName = address(open, "127.0.0.1"), certs.CAFile, "localhost"
		}, ""},
		{"no client certificate", func(c *Config) { c.Servers, c.TLSCAFile = address(strict, "127.0.0.1"), certs.CAFile }, "RELAY_NATS_TLS_CERT_FILE"},
		{"client certificate of another authority", func(c *Config) {
			c.Servers, c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile = address(strict, "127.0.0.1"), certs.CAFile, foreign.ClientCert, foreign.ClientKey
		}, "RELAY_NATS_TLS_CERT_FILE"},
		{"the server has no TLS", func(c *Config) { c.Servers, c.TLSCAFile = address(plain, "127.0.0.1"), certs.CAFile }, "does not speak TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := DefaultConfig()
			c.change(&cfg)
			s := newSink(t, cfg)
			err := s.Check(soon(t))
			if c.fix == "" {
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(cfg.Servers[0], fmt.Sprint(strict.Port)) {
					err = publish(t, s, sinktest.Records(subject, "k", 0, 20)...)
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
			var setup *relay.SetupError
			if !errors.As(err, &setup) || !strings.Contains(setup.Fix, c.fix) {
				t.Errorf("got %v, want a fix with %s", err, c.fix)
			}
		})
	}
}

// must2 is for what cannot fail in a test.
func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestLogins(t *testing.T) {
	t.Run("token", func(t *testing.T) {
		server := natstest.Start(t, `authorization { token: "hunter2-token" }`)
		cfg := config(server)
		cfg.Token = "hunter2-token"
		loginWorks(t, cfg, func(c *Config) { c.Token = "hunter2-wrong" })
	})
	t.Run("NKey", func(t *testing.T) {
		user, other := must2(nkeys.CreateUser()), must2(nkeys.CreateUser())
		server := natstest.Start(t, fmt.Sprintf("authorization { users: [{nkey: %s}] }", must2(user.PublicKey())))
		cfg := config(server)
		cfg.NKey = string(must2(user.Seed()))
		loginWorks(t, cfg, func(c *Config) { c.NKey = string(must2(other.Seed())) })
	})
	t.Run("JWT", func(t *testing.T) {
		operator, system, account := must2(nkeys.CreateOperator()), must2(nkeys.CreateAccount()), must2(nkeys.CreateAccount())
		claims := jwt.NewOperatorClaims(must2(operator.PublicKey()))
		claims.SystemAccount = must2(system.PublicKey())
		of := func(key nkeys.KeyPair) string {
			a := jwt.NewAccountClaims(must2(key.PublicKey()))
			if key == account {
				a.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
			}
			return must2(a.Encode(operator))
		}
		server := natstest.Start(t, fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n%s: %s\n%s: %s\n}",
			must2(claims.Encode(operator)), must2(system.PublicKey()), must2(system.PublicKey()), of(system), must2(account.PublicKey()), of(account)))
		creds := func(signer nkeys.KeyPair) string {
			user := must2(nkeys.CreateUser())
			token := must2(jwt.NewUserClaims(must2(user.PublicKey())).Encode(signer))
			return string(must2(jwt.FormatUserConfig(token, must2(user.Seed()))))
		}
		cfg := config(server)
		cfg.Creds = creds(account)
		loginWorks(t, cfg, func(c *Config) { c.Creds = creds(must2(nkeys.CreateAccount())) })
	})
}

// loginWorks publishes to a stream as cfg says, and wants a hint of a login that is spoiled.
func loginWorks(t *testing.T, cfg Config, spoil func(*Config)) {
	t.Helper()
	login := must2(cfg.login())
	subject := newStream(t, cfg.Servers[0], nil, login)
	if err := publish(t, newSink(t, cfg), sinktest.NewRecord(subject, "k", 0, 0)); err != nil {
		t.Error(err)
	}
	spoil(&cfg)
	s, log := newLoggedSink(t, cfg)
	err := s.Check(soon(t))
	var setup *relay.SetupError
	if !errors.As(err, &setup) || !strings.Contains(setup.Fix, "refused the login: check NATS_") {
		t.Errorf("wrong login: %v", err)
	}
	for _, secret := range []string{cfg.Token, cfg.NKey, cfg.Creds} {
		if secret != "" && strings.Contains(fmt.Sprint(err)+log.String(), secret) {
			t.Error("a secret is shown")
		}
	}
}

func TestValidate(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"default", func(*Config) {}, ""},
		{"several", func(c *Config) {
			c.Servers = []string{"nats://a:4222", "b:4222", "nats://[::1]:4222", "nats://u:p%40@c"}
		}, ""},
		{"none", func(c *Config) { c.Servers = nil }, "NATS_URL: want nats://host:4222"},
		{"another protocol", func(c *Config) { c.Servers = []string{"amqp://u:hunter2@h"} }, "NATS_URL: want each address to begin with nats:// or tls://"},
		{"password with an at sign", func(c *Config) { c.Servers = []string{"nats://u:hunter2@x@h"} }, "NATS_URL: an @ is where none belongs"},
		{"password with a slash", func(c *Config) { c.Servers = []string{"nats://u:1/hunter2@h"} }, "NATS_URL:"},
		{"path", func(c *Config) { c.Servers = []string{"nats://h/x"} }, "nothing behind the host"},
		{"mixed", func(c *Config) { c.Servers = []string{"nats://a", "tls://b"} }, "all addresses to begin with nats://, or all with tls://"},
		{"two logins", func(c *Config) { c.Servers, c.Token = []string{"nats://u:p@h"}, "t" }, "a user or token in NATS_URL and NATS_TOKEN: want one way"},
		{"user alone", func(c *Config) { c.User = "u" }, "NATS_USER and NATS_PASSWORD: want both"},
		{"seed", func(c *Config) { c.NKey = "hunter2" }, "NATS_NKEY: want the seed"},
		{"an account's seed", func(c *Config) { c.NKey = string(must2(must2(nkeys.CreateAccount()).Seed())) }, "NATS_NKEY: the seed is not a user's"},
		{"creds", func(c *Config) { c.Creds = "/etc/hunter2.creds" }, "NATS_CREDS: want the content"},
		{"stream", func(c *Config) { c.Stream = "orders.>" }, "RELAY_NATS_STREAM=orders.>: want a stream's name"},
		{"window", func(c *Config) { c.Window = 0 }, "RELAY_NATS_WINDOW=0: want 1 to 10000"},
		{"timeouts", func(c *Config) { c.AckTimeout, c.DialTimeout = 0, 0 }, "RELAY_NATS_ACK_TIMEOUT=0s: want at least 100ms\nRELAY_NATS_DIAL_TIMEOUT=0s: want at least 10ms"},
		{"inbox", func(c *Config) { c.InboxPrefix = "a.>" }, "RELAY_NATS_INBOX_PREFIX=a.>: want a subject without wildcards"},
		{"TLS file without TLS", func(c *Config) { c.TLSCAFile = "ca.pem" }, "RELAY_NATS_TLS_CA_FILE=ca.pem: has no effect without TLS: want each address of NATS_URL to begin with tls://"},
		{"no such file", func(c *Config) { c.Servers, c.TLSCAFile = []string{"tls://h"}, dir+"/none" }, "RELAY_NATS_TLS_CA_FILE: open"},
		{"key alone", func(c *Config) { c.Servers, c.TLSKeyFile = []string{"tls://h"}, dir }, "want both or neither"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := DefaultConfig()
			c.change(&cfg)
			err := cfg.Validate()
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if _, err := New(cfg, nil); err == nil {
				t.Error("New takes it")
			}
		})
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
}
