// Package tlsfiles reads the files in PEM form that TLS settings name, for clients of brokers and
// collectors, and reports what is wrong with them by the settings' names.
//
// It reads them when it is asked: a client asks at each connection, so that renewed certificates
// need no restart. The HTTP server, which has many connections, looks for changed files instead
// (relay/admin/certificate.go).
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Setting is a setting as the user knows it: the variable's name and value.
type Setting struct{ Name, Value string }

// Client are the settings of a client's TLS. One without a value is not set.
type Client struct {
	CA         Setting // certificates that the server's is checked against, instead of the system's
	Cert, Key  Setting // the client's own, for a server that asks
	ServerName Setting // what the server's certificate must carry, where that is not its host
}

// Config reads the files.
func (c Client) Config() (*tls.Config, error) {
	cfg := &tls.Config{ServerName: c.ServerName.Value, MinVersion: tls.VersionTLS12}
	if c.CA.Value != "" {
		pem, err := os.ReadFile(c.CA.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.CA.Name, err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s=%s: holds no certificate in PEM form", c.CA.Name, c.CA.Value)
		}
	}
	if err := Both(c.Cert, c.Key); err != nil {
		return nil, err
	}
	if c.Cert.Value != "" {
		cert, err := Load(c.Cert, c.Key)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

// Set reports whether any of them is set.
func (c Client) Set() bool {
	return c.Unused("") != nil
}

// Unused returns an error for each that is set, because without TLS it has no effect; want is how
// to have TLS.
func (c Client) Unused(want string) error {
	var errs []error
	for _, s := range [...]Setting{c.CA, c.Cert, c.Key, c.ServerName} {
		if s.Value != "" {
			errs = append(errs, fmt.Errorf("%s=%s: has no effect without TLS: want %s", s.Name, s.Value, want))
		}
	}
	return errors.Join(errs...)
}

// Both refuses a certificate without a key, and a key without a certificate.
func Both(cert, key Setting) error {
	if (cert.Value == "") != (key.Value == "") {
		return fmt.Errorf("%s and %s: want both or neither", cert.Name, key.Name)
	}
	return nil
}

// Load reads a certificate, with its chain, and its key.
func Load(cert, key Setting) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(cert.Value, key.Value)
	if err != nil {
		return pair, fmt.Errorf("%s=%s with %s=%s: %w", cert.Name, cert.Value, key.Name, key.Value, err)
	}
	return pair, nil
}
