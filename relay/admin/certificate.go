package admin

import (
	"crypto/tls"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/tlsfiles"
)

// pair is the server's certificate and key. Files that change are read again: issuers of
// short-lived certificates replace them.
type pair struct {
	certFile, keyFile string
	log               hclog.Logger

	mu     sync.Mutex // guards what follows
	cert   *tls.Certificate
	seen   stamps // of the files that cert, or the last failure, came from
	warned bool   // that the time of cert is over, or has not come
}

// stamps distinguish two files from older ones at the same places; nil without files. A mounted
// secret is a link that moves; os.Stat follows it.
type stamps [2]os.FileInfo

// same compares places on disk, too: times are no finer than the kernel's clock ticks, and
// certificates have like sizes.
func (s stamps) same(as stamps) bool {
	for i := range s {
		a, b := s[i], as[i]
		if (a == nil) != (b == nil) || a != nil && (!os.SameFile(a, b) || !a.ModTime().Equal(b.ModTime()) || a.Size() != b.Size()) {
			return false
		}
	}
	return true
}

// loadPair reads the files; the error names the settings.
func loadPair(certFile, keyFile string, log hclog.Logger) (*pair, error) {
	p := &pair{certFile: certFile, keyFile: keyFile, log: log}
	p.seen = p.stamps()
	cert, err := p.load()
	if err != nil {
		return nil, err
	}
	p.cert = &cert
	p.mindTime()
	return p, nil
}

func (p *pair) load() (tls.Certificate, error) {
	return tlsfiles.Load(tlsSettings(p.certFile, p.keyFile))
}

func (p *pair) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.get(), nil }}
}

// get returns the certificate, after a look at the files. What cannot be used is logged once, and
// the last good one stays in use. Perhaps only half of a new pair is written yet.
func (p *pair) get() *tls.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.stamps()
	if now.same(p.seen) {
		p.mindTime()
		return p.cert
	}
	p.seen = now
	cert, err := p.load()
	if err != nil {
		p.log.Warn("the new certificate cannot be used, the one before it stays", "error", err)
		return p.cert
	}
	p.cert, p.warned = &cert, false
	p.log.Info("certificate read again", "file", p.certFile)
	p.mindTime()
	return p.cert
}

// mindTime logs once that a certificate's time is over or has not come: peers refuse it, which only
// their own logs would show. It stays in use, because some peers accept it. It is called with mu
// held, or before others know of p.
func (p *pair) mindTime() {
	leaf, now := p.cert.Leaf, time.Now()
	if p.warned || leaf == nil || !now.Before(leaf.NotBefore) && !now.After(leaf.NotAfter) {
		return
	}
	p.warned = true
	p.log.Warn("the certificate is not valid now, peers will refuse it", "file", p.certFile, "not_before", leaf.NotBefore, "not_after", leaf.NotAfter, "fix", "renew it; the new file is read by itself")
}

func (p *pair) stamps() (s stamps) {
	for i, name := range []string{p.certFile, p.keyFile} {
		if info, err := os.Stat(name); err == nil {
			s[i] = info
		}
	}
	return s
}
