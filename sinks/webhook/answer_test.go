package webhook

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestAnswers(t *testing.T) {
	const acked, transient = "acked", "transient"
	r := newReceiver(t, nil)
	s := open(t, r.config())
	for status, want := range map[int]string{
		200: acked, 201: acked, 202: acked, 204: acked, 299: acked,
		300: "unroutable", 301: "unroutable", 302: "unroutable", 303: "unroutable", 304: "unroutable", 307: "unroutable", 308: "unroutable",
		400: "rejected", 401: transient, 402: "rejected", 403: "unroutable", 404: "unroutable", 405: "unroutable", 407: transient, 408: transient, 409: "rejected", 410: "rejected",
		413: "too_large", 414: "too_large", 415: "rejected", 422: "rejected", 425: transient, 429: transient, 431: "too_large", 451: "rejected",
		500: transient, 501: transient, 502: transient, 503: transient, 504: transient, 507: transient, 599: transient, 600: transient,
	} {
		r.status(status)
		before := r.count()
		recs := sinktest.Interleave(sinktest.Records("OrderCreated", "a", 0, 3), sinktest.Records("OrderCreated", "b", 0, 2))
		errs := outcomes(t, len(recs), s.Publish(soon(t), recs))
		for i, err := range errs {
			got := acked
			r, refused := relay.Refused(err)
			switch {
			case refused:
				got = string(r.Reason)
			case err != nil:
				got = transient
			}
			want := want
			if i > 1 && want != acked { // the later ones of their keys
				want = transient
				if errors.Is(errs[0], relay.ErrBehind) != errors.Is(err, relay.ErrBehind) && !errors.Is(err, relay.ErrBehind) {
					if _, refused := relay.Refused(errs[0]); refused {
						t.Errorf("%d: record %d: %v, want it held behind", status, i, err)
					}
				}
			}
			if got != want {
				t.Errorf("%d: record %d is %s (%v), want %s", status, i, got, err, want)
			}
			if err != nil && !errors.Is(err, relay.ErrBehind) && !strings.Contains(err.Error(), fmt.Sprintf("http://%s answered %d", r0(s), status)) {
				t.Errorf("%d: record %d: %v: want the receiver and the status", status, i, err)
			}
		}
		if asked, want := r.count()-before, map[bool]int{true: 5, false: 2}[want == acked]; asked != want {
			t.Errorf("%d: %d requests, want %d: none behind one that failed", status, asked, want)
		}
	}
}

func r0(s *Sink) string { return s.to.host + ":" + s.to.port }

// Headers above what the receiver takes are the event's fault, with HTTP/2 too, where the transport
// does not even send them.
func TestLargeHeaders(t *testing.T) {
	secure, certs := serverTLS(t)
	for _, r := range []*receiver{newReceiver(t, nil), newReceiver(t, secure)} {
		cfg := r.config()
		if r.secure != nil {
			cfg.TLSCAFile = certs.CAFile
		}
		s := open(t, cfg)
		recs := append(sinktest.Records("OrderCreated", "large", 0, 2), sinktest.Records("OrderCreated", "other", 0, 2)...)
		recs[0].Headers = append(recs[0].Headers, relay.Header{Key: "big", Value: strings.Repeat("x", 3<<20)})
		if err := s.Publish(soon(t), sinktest.Records("OrderCreated", "first", 0, 1)); err != nil { // now the receiver's limit is known
			t.Fatal(err)
		}
		errs := outcomes(t, len(recs), s.Publish(soon(t), recs))
		if refused, ok := relay.Refused(errs[0]); !ok || refused.Reason != relay.ReasonTooLarge || strings.Contains(errs[0].Error(), "xxx") {
			t.Errorf("%s: %v, want it refused as too large", cfg.URL, errs[0])
		}
		if !errors.Is(errs[1], relay.ErrBehind) || errs[2] != nil || errs[3] != nil {
			t.Errorf("%s: %v, want the next of its key behind it, and the others sent", cfg.URL, errs[1:])
		}
	}
}

// After a 101 the connection speaks something else, for as long as the receiver likes. Nobody waits
// for the end of that.
func TestSwitchedProtocols(t *testing.T) {
	r := newReceiver(t, nil)
	s := open(t, r.config())
	r.set(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return false
		}
		t.Cleanup(func() { _ = conn.Close() })
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		return false
	})
	done := make(chan error, 1)
	go func() { done <- s.Publish(soon(t), sinktest.Records("OrderCreated", "a", 0, 2)) }()
	select {
	case err := <-done:
		errs := outcomes(t, 2, err)
		if refused, ok := relay.Refused(errs[0]); !ok || refused.Reason != relay.ReasonUnroutable || !errors.Is(errs[1], relay.ErrBehind) {
			t.Errorf("%v, want the first one refused as unroutable and the other behind it", errs)
		}
	case <-time.After(15 * time.Second):
		t.Error("Publish waits for the end of the connection")
		_ = s.Close()
		<-done
	}
}

// A redirect is not followed, whatever it points to, and its error has nothing of the way.
func TestRedirect(t *testing.T) {
	other := newReceiver(t, nil)
	r := newReceiver(t, nil)
	s := open(t, r.config())
	for location, want := range map[string]string{
		"http://" + other.addr + "/hush?token=hush": "points to http://" + other.addr + ":",
		"/events/hush":            "points to http://" + r.addr + ":",
		"":                        "redirects are not followed: put",
		"http://evil%1b[31m/hush": "redirects are not followed: put",
		"file:///etc/passwd":      "redirects are not followed: put",
	} {
		for _, status := range []int{301, 302, 307, 308} {
			r.status(status, "Location", location)
			before := r.count()
			err := outcomes(t, 1, s.Publish(soon(t), sinktest.Records("OrderCreated", "a", 0, 1)))[0]
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "RELAY_WEBHOOK_URL") {
				t.Errorf("%d to %q: %v, want %q", status, location, err, want)
			}
			if err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "\x1b")) {
				t.Errorf("%d: the error has what may be a secret: %q", status, err)
			}
			if r.count() != before+1 || other.count() != 0 {
				t.Errorf("%d: %d requests here and %d there, want 1 and 0", status, r.count()-before, other.count())
			}
		}
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 30, 22, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"0": 0, "1": time.Second, "120": 2 * time.Minute, "99999999999999999": retryAfterMost, "99999999999999999999999999": retryAfterMost, "Mon, 30 Nov 2026 22:00:30 GMT": 30 * time.Second, "Monday, 30-Nov-26 22:01:00 GMT": time.Minute, "Mon Nov 30 22:00:05 2026": 5 * time.Second,
		"Sun, 29 Nov 2026 22:00:00 GMT": -24 * time.Hour,
	} {
		if got, ok := parseRetryAfter(text, now); !ok || got != want {
			t.Errorf("%q: got %s, %t, want %s", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "-1", "soon", "1.5", "1s", "Mon, 30 Nov 2026"} {
		if got, ok := parseRetryAfter(text, now); ok {
			t.Errorf("%q: got %s, want none", text, got)
		}
	}
	var p pace
	if until, ok := p.hold("/a", "Fri, 01 Jan 2100 00:00:00 GMT", now); !ok || until.Sub(now) != retryAfterMost {
		t.Errorf("held until %s, want %s", until, retryAfterMost)
	}
	if p.wait("/a", now.Add(retryAfterMost-1)) == nil || p.wait("/b", now) != nil || p.wait("/a", now.Add(retryAfterMost)) != nil {
		t.Error("the time is not kept, or kept for another URL")
	}
}

// No request goes to a URL before the time that its receiver has named, from any lane. Other URLs
// do not wait, and it gets the events in order afterwards.
func TestRetryAfter(t *testing.T) {
	r := newReceiver(t, nil)
	s := open(t, r.config())
	var mu sync.Mutex
	busy, early, last := true, 0, time.Time{}
	r.set(func(w http.ResponseWriter, req *http.Request, _ []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if !strings.HasSuffix(req.URL.Path, "/Busy") {
			return true
		}
		if since := time.Since(last); since < 900*time.Millisecond {
			early++
		}
		if last = time.Now(); busy {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}
		return !busy
	})
	busyOnes := sinktest.Records("Busy", "a", 0, 5)
	batch := append(sinktest.Records("Free", "b", 0, 5), busyOnes...)
	errs := outcomes(t, 10, s.Publish(soon(t), batch))
	for i, err := range errs {
		if (err != nil) != (i >= 5) {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if err := errs[5]; err == nil || !strings.Contains(err.Error(), "429") || !strings.Contains(err.Error(), "no request for 1s (Retry-After)") {
		t.Errorf("got %v, want the status and how long", err)
	}
	before := r.count()
	if err := outcomes(t, 1, s.Publish(soon(t), sinktest.Records("Busy", "other", 0, 1)))[0]; err == nil || !strings.Contains(err.Error(), "Retry-After") || r.count() != before {
		t.Errorf("another key of the URL: %v, %d requests, want none", err, r.count()-before)
	}
	if err := s.Publish(soon(t), sinktest.Records("Free", "b", 5, 1)); err != nil {
		t.Errorf("another URL waits, too: %v", err)
	}
	mu.Lock()
	busy = false
	mu.Unlock()
	if _, err := sinktest.Offer(soon(t), s, busyOnes); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	// The first one after the wait is at least a second behind the answer; those after it are not.
	if early != len(busyOnes)-1 {
		t.Errorf("%d requests came within a second of one before, want %d", early, len(busyOnes)-1)
	}
	got := map[string]int{"a": 5, "b": 6}
	sinktest.CheckOrder(t, r.consume(t), got, false)
}

// A receiver that never answers costs the timeout, and not once for each of its keys.
func TestNeverAnswers(t *testing.T) {
	r := newReceiver(t, nil)
	resume := r.stall()
	defer resume()
	cfg := r.config()
	cfg.Timeout, cfg.Concurrency = 300*time.Millisecond, 2
	s := open(t, cfg)
	var keys [][]*relay.Record
	for i := range 40 {
		keys = append(keys, sinktest.Records("OrderCreated", fmt.Sprint(i), 0, 2))
	}
	batch := sinktest.Interleave(keys...)
	began := time.Now()
	errs := outcomes(t, len(batch), s.Publish(soon(t), batch))
	// Each alone would be 40 × 300 ms / 2 = 6 s.
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	timeouts := 0
	for i, err := range errs {
		if _, refused := relay.Refused(err); err == nil || refused {
			t.Errorf("record %d: %v, want a transient error", i, err)
		}
		if errors.Is(err, context.DeadlineExceeded) && strings.Contains(err.Error(), "no answer within 300ms (RELAY_WEBHOOK_TIMEOUT)") {
			timeouts++
		}
	}
	if timeouts < 2 {
		t.Errorf("%d timeouts: %v", timeouts, errs[0])
	}
	resume()
	if _, err := sinktest.Offer(soon(t), s, batch); err != nil {
		t.Error(err)
	}
}

// One event that the receiver does not answer holds up its own key only.
func TestOneEventIsNotAnswered(t *testing.T) {
	r := newReceiver(t, nil)
	r.set(func(w http.ResponseWriter, req *http.Request, body []byte) bool {
		if strings.Contains(string(body), `"bad"`) {
			panic(http.ErrAbortHandler) // ends the connection without an answer
		}
		return true
	})
	cfg := r.config()
	cfg.Concurrency = 1
	s := open(t, cfg)
	batch := append(sinktest.Records("OrderCreated", "bad", 0, 2), sinktest.Records("OrderCreated", "good", 0, 2)...)
	if err := s.Publish(soon(t), sinktest.Records("OrderCreated", "first", 0, 1)); err != nil {
		t.Fatal(err)
	}
	batch = append(sinktest.Records("OrderCreated", "first", 1, 1), batch...) // it is there, as this shows
	errs := outcomes(t, 5, s.Publish(soon(t), batch))
	for i, err := range errs {
		if (err != nil) != (i == 1 || i == 2) {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

// The status counts, whatever becomes of the body: without an end, slow, cut, or none.
func TestBodies(t *testing.T) {
	for name, answer := range map[string]string{
		"without end":         "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 1<<20),
		"never comes":         "HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\nabc",
		"broken chunk":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"cut":                 "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
		"informational first": "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, scripted(t, answer, name == "cut"))
			began := time.Now()
			if err := s.Publish(soon(t), sinktest.Records("OrderCreated", "a", 0, 1)); err != nil {
				t.Errorf("answered 200: %v", err)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
	for name, answer := range map[string]string{
		"reset before an answer": "", "half a status": "HTTP/1.1 2", "no HTTP": "SSH-2.0-OpenSSH\r\n", "switches protocols": "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
		"control character": "HTTP/1.1 301 Moved\r\nLocation: http://hush\x1b/\r\n\r\n",
		"endless headers":   "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: "+strings.Repeat("x", 1000)+"\r\n", 200),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, scripted(t, answer, true))
			if err := outcomes(t, 1, s.Publish(soon(t), sinktest.Records("OrderCreated", "a", 0, 1)))[0]; err == nil || strings.Contains(err.Error(), "SSH") || strings.Contains(err.Error(), "hush") {
				t.Errorf("got %v, want an error without the answer", err)
			}
		})
	}
}

// scripted answers each request with the same bytes, and closes the connection then or leaves it
// open until the test ends.
func scripted(t *testing.T, answer string, hangUp bool) Config {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	over := make(chan struct{})
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer func() { _ = c.Close() }()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				written := make(chan struct{})
				go func() {
					defer close(written)
					_, _ = io.WriteString(c, answer)
				}()
				if hangUp {
					<-written
					return
				}
				<-over
				_ = c.Close()
				<-written
			})
		}
	})
	t.Cleanup(func() {
		close(over)
		_ = ln.Close()
		running.Wait()
	})
	cfg := DefaultConfig()
	cfg.URL = "http://" + ln.Addr().String() + "/"
	return cfg
}
