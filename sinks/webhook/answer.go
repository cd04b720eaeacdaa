package webhook

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

// outcome is what an answer means for its record; doc.go has the table. No text has anything of the
// answer's body: receivers repeat there what they were sent.
func (s *Sink) outcome(answer *http.Response, to *url.URL, rec *relay.Record) error {
	status := answer.StatusCode
	said := fmt.Errorf("%s answered %d %s", s.to, status, http.StatusText(status))
	refuse := func(reason relay.Reason, why string) error {
		return relay.Refuse(reason, fmt.Errorf("%w: %s", said, why))
	}
	switch {
	case status >= 200 && status < 300:
		return nil
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests, status >= 500:
		now := time.Now()
		if until, ok := s.pace.hold(to.RequestURI(), answer.Header.Get("Retry-After"), now); ok {
			return fmt.Errorf("%w, and wants no request for %s (Retry-After)", said, until.Sub(now).Round(time.Second))
		}
		return said
	case status == http.StatusUnauthorized, status == http.StatusProxyAuthRequired:
		return &relay.SetupError{Problem: said.Error(), Fix: s.cfg.Said("check the credentials in RELAY_WEBHOOK_HEADERS or RELAY_WEBHOOK_URL, and RELAY_WEBHOOK_SECRETS")}
	case status == http.StatusRequestEntityTooLarge, status == http.StatusRequestHeaderFieldsTooLarge, status == http.StatusRequestURITooLong:
		return &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: int64(rec.Size()), Err: said}
	case status >= 300 && status < 400:
		return refuse(relay.ReasonUnroutable, s.cfg.Said("redirects are not followed"+pointsTo(answer)+": put the address that is meant into RELAY_WEBHOOK_URL"))
	case status < 200:
		return refuse(relay.ReasonUnroutable, "that is no answer to a POST: "+s.cfg.Said("check RELAY_WEBHOOK_URL"))
	case status == http.StatusForbidden:
		return refuse(relay.ReasonUnroutable, s.cfg.Said("check the credentials in RELAY_WEBHOOK_HEADERS, and what the receiver's firewall lets through"))
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed:
		return refuse(relay.ReasonUnroutable, s.cfg.Said("nothing takes a POST there: check RELAY_WEBHOOK_URL"))
	case status == http.StatusGone:
		return refuse(relay.ReasonRejected, "the receiver wants no more events there")
	default:
		return refuse(relay.ReasonRejected, "the receiver does not take the event as it is")
	}
}

// pointsTo names the host of a redirect. The rest of it may have a secret in it.
func pointsTo(answer *http.Response) string {
	to, err := answer.Location()
	if err != nil || to.Host == "" {
		return ""
	}
	return ", this one points to " + term.Text(to.Scheme+"://"+to.Host)
}

// String is the receiver in errors: no path, which may be a secret.
func (t *target) String() string {
	u := url.URL{Scheme: t.scheme, Host: t.host}
	if t.port != "80" && t.port != "443" {
		u.Host += ":" + t.port
	}
	return u.String()
}

const (
	// retryAfterMost is the longest time that a receiver may keep requests away. One that asks for
	// more is asked again after this.
	retryAfterMost = 15 * time.Minute
	// mostHeld bounds the memory of pace, where each topic has a URL.
	mostHeld = 10_000
)

// pace knows to which URLs no request may go yet, because their receiver has said so. It may be used
// from any number of goroutines.
type pace struct {
	mu    sync.Mutex
	until map[string]time.Time // guarded by mu
}

// hold reads a Retry-After and obeys it. It reports until when, and whether it has one that can be
// read.
func (p *pace) hold(uri, retryAfter string, now time.Time) (until time.Time, ok bool) {
	wait, ok := parseRetryAfter(retryAfter, now)
	if !ok || wait <= 0 {
		return time.Time{}, false
	}
	until = now.Add(min(wait, retryAfterMost))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.until == nil || len(p.until) >= mostHeld {
		p.until = make(map[string]time.Time)
	}
	p.until[uri] = until
	return until, true
}

// wait returns an error while the URL is held.
func (p *pace) wait(uri string, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, held := p.until[uri]
	if !held {
		return nil
	}
	if left := until.Sub(now); left > 0 {
		return fmt.Errorf("not sent: the receiver wants no request for %s (Retry-After)", left.Round(time.Second))
	}
	delete(p.until, uri)
	return nil
}

// parseRetryAfter reads seconds or a date (RFC 9110, 10.2.3).
func parseRetryAfter(s string, now time.Time) (time.Duration, bool) {
	// Of a number that is too large it returns the largest.
	if seconds, err := strconv.ParseUint(s, 10, 63); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, uint64(retryAfterMost/time.Second))) * time.Second, true
	}
	if at, err := http.ParseTime(s); err == nil {
		return at.Sub(now), true
	}
	return 0, false
}
