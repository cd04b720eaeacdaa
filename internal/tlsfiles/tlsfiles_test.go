package tlsfiles

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// files writes a certificate, its key and a file without either.
func files(t *testing.T) (cert, key, empty string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"broker.example"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, of, of, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("tls.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		write("tls.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), write("empty.pem", nil)
}

func TestClient(t *testing.T) {
	cert, key, empty := files(t)
	for _, c := range []struct {
		name                  string
		ca, cert, key, server string
		want                  string // in the error; "" for none
	}{
		{name: "nothing"},
		{name: "all", ca: cert, cert: cert, key: key, server: "broker.example"},
		{name: "no such file", ca: "/no/such.pem", want: "X_CA: open /no/such.pem"},
		{name: "no certificate", ca: empty, want: "X_CA=" + empty + ": holds no certificate in PEM form"},
		{name: "certificate alone", cert: cert, want: "X_CERT and X_KEY: want both or neither"},
		{name: "key alone", key: key, want: "X_CERT and X_KEY: want both or neither"},
		{name: "wrong key", cert: cert, key: empty, want: "X_CERT=" + cert + " with X_KEY=" + empty + ": tls: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := Client{Setting{"X_CA", c.ca}, Setting{"X_CERT", c.cert}, Setting{"X_KEY", c.key}, Setting{"X_NAME", c.server}}
			if set := c.name != "nothing"; client.Set() != set {
				t.Errorf("set: got %t, want %t", !set, set)
			}
			cfg, err := client.Config()
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if cfg.MinVersion != tls.VersionTLS12 || cfg.ServerName != c.server || (cfg.RootCAs != nil) != (c.ca != "") || len(cfg.Certificates) > 0 != (c.cert != "") {
				t.Errorf("got %+v", cfg)
			}
		})
	}
}

func TestUnused(t *testing.T) {
	err := Client{CA: Setting{"X_CA", "ca.pem"}, ServerName: Setting{"X_NAME", "broker"}}.Unused("X_URL to begin with x://")
	const want = "X_CA=ca.pem: has no effect without TLS: want X_URL to begin with x://\nX_NAME=broker: has no effect without TLS: want X_URL to begin with x://"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if err := (Client{}).Unused("X"); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}
