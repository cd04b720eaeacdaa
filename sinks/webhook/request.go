package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	// What is read of an answer's body, so that the connection can be used again, and for how long.
	mostBody = 16 << 10
	bodyTime = 500 * time.Millisecond
)

// post sends one record and reports whether there was an answer, and the record's outcome.
func (s *Sink) post(ctx context.Context, fence func() bool, to *url.URL, rec *relay.Record) (answered bool, err error) {
	// Its end is not the request's: see grace.
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	timeout := time.AfterFunc(s.cfg.Timeout, func() { cancel(s.noAnswer()) })
	defer timeout.Stop()
	defer context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })()
	over := make(chan struct{})
	defer close(over)
	defer context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-over:
		case <-timer.C:
			cancel(context.Cause(ctx))
		}
	})()

	var fenced atomic.Bool
	body := func() io.ReadCloser {
		return &fencedBody{Reader: bytes.NewReader(rec.Value), valid: fence, ended: ctx, fenced: &fenced}
	}
	req := (&http.Request{
		Method: http.MethodPost, URL: to, Host: to.Host, Header: s.headers.Clone(), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: body(), ContentLength: int64(len(rec.Value)),
		// The transport takes another connection where an idle one had ended before anything was
		// written to it.
		GetBody: func() (io.ReadCloser, error) { return body(), nil },
	}).WithContext(own)
	now := time.Now()
	id := rec.EventID.String()
	req.Header["webhook-id"] = []string{id}
	req.Header["webhook-timestamp"] = []string{strconv.FormatInt(now.Unix(), 10)}
	if len(s.signers) > 0 {
		req.Header["webhook-signature"] = []string{signatures(s.signers, id, now.Unix(), rec.Value)}
	}
	addHeaders(req.Header, rec)

	answer, err := s.transport.RoundTrip(req)
	if err != nil {
		if fenced.Load() {
			return false, fencedError(ctx)
		}
		if aboveHeaderLimit(err) { // which the receiver has said on this connection, so it is there
			return true, &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: int64(rec.Size() - len(rec.Value)), Err: fmt.Errorf("%s takes no headers of this size", s.to)}
		}
		return false, s.cfg.connectError(s.to, causeOf(own, err))
	}
	if answer.StatusCode != http.StatusSwitchingProtocols { // whose body is the connection, and has no end
		limit := time.AfterFunc(bodyTime, func() { cancel(nil) })
		_, _ = io.CopyN(io.Discard, answer.Body, mostBody) // the status counts, whatever becomes of the body
		limit.Stop()
	}
	_ = answer.Body.Close()
	return true, s.outcome(answer, to, rec)
}

// fencedBody is a request's body that is not read where the record may not be sent any more. The
// transport reads it when the connection is there, before it writes the last of the request.
type fencedBody struct {
	io.Reader
	valid  func() bool
	ended  context.Context
	asked  bool
	fenced *atomic.Bool // the answer was no
}

func (b *fencedBody) Read(p []byte) (int, error) {
	if !b.asked {
		b.asked = true
		// A request that begins when Publish is to end would only have its grace.
		if b.ended.Err() != nil || !b.valid() {
			b.fenced.Store(true)
			return 0, relay.ErrFence
		}
	}
	return b.Reader.Read(p)
}

func (b *fencedBody) Close() error { return nil }

// fencedError is why the body was not read.
func fencedError(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return relay.ErrFence
}

// of is the URL for a record. It is new: the transport may keep it.
func (t *target) of(rec *relay.Record) (*url.URL, error) {
	path, query := t.path, t.query
	if t.templated {
		if err := checkTopic(rec.Topic); err != nil {
			return nil, relay.Refuse(relay.ReasonEncode, err)
		}
		path = strings.ReplaceAll(path, topicField, url.PathEscape(rec.Topic))
		query = strings.ReplaceAll(query, topicField, url.QueryEscape(rec.Topic))
	}
	plain, err := url.PathUnescape(path)
	if err != nil { // checked with the settings, and what a topic becomes is right
		return nil, fmt.Errorf("read the path of the URL: %w", err)
	}
	host := t.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return &url.URL{Scheme: t.scheme, Host: host + ":" + t.port, Path: plain, RawPath: path, RawQuery: query}, nil
}

// checkTopic reports a topic that cannot be a part of a URL.
func checkTopic(topic string) error {
	switch topic {
	case "":
		return errors.New("the topic is empty, and the URL has it: change event_type, RELAY_TOPIC or the topic of its rule")
	case ".", "..":
		return fmt.Errorf("the topic %q would be another place in the URL's path: change event_type, RELAY_TOPIC or the topic of its rule", topic)
	}
	return nil
}

// CheckRoute reports a topic that cannot be a part of the URL, where that has it.
func (c *Config) CheckRoute(r relay.Route) error {
	if to, err := c.address(); err != nil || !to.templated { // what is wrong with the URL is reported by Validate
		return nil
	}
	return checkTopic(r.Topic)
}
