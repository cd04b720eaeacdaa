package rabbitmq

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// obeys publishes and checks under a context that ends soon, with the server silent, and closes the
// sink.
func obeys(t *testing.T, cfg Config) {
	t.Helper()
	s := newSink(t, cfg)
	soonEnough := func(what string, f func()) {
		t.Helper()
		start := time.Now()
		f()
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("%s took %s", what, took)
		}
	}
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		soonEnough("publish", func() {
			err := s.Publish(ctx, sinktest.Records(bound, "k", 0, 3))
			if _, refused := relay.Refused(err); err == nil || refused {
				t.Errorf("publish: %v", err)
			}
		})
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	soonEnough("check", func() { _ = s.Check(ctx) })
	publishing := make(chan error, 1)
	go func() { publishing <- s.Publish(soon(t), sinktest.Records(bound, "k", 0, 3)) }()
	soonEnough("close", func() { _ = s.Close() })
	soonEnough("publish whose sink was closed", func() {
		if err := <-publishing; err == nil {
			t.Error("no error")
		}
	})
}

// A server that accepts and is silent, from any moment on, blocks neither Publish nor Close.
func TestSilence(t *testing.T) {
	for name, from := range map[string][2]uint16{
		"connection.start-ok": {10, 11}, "connection.open": {10, 40}, "channel.open": {20, 10}, "exchange.declare": {40, 10},
		"confirm.select": {85, 10}, "basic.publish": {60, 40},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := newScripted(t, func([]byte, bool) (int, string, bool) { return 0, "", false })
			broker.silentFrom = from
			obeys(t, broker.config())
		})
	}
	for _, scheme := range []string{"amqp", "amqps"} {
		t.Run("accept only, "+scheme, func(t *testing.T) {
			t.Parallel()
			cfg := DefaultConfig()
			cfg.URL = scheme + "://u:hidden@" + scriptedListener(t) + "/"
			obeys(t, cfg)
		})
	}
}

// At the address is another server, or one that sends without end: a clear error, and little
// memory.
func TestAnotherServerAnswers(t *testing.T) {
	start := func(typ byte, size uint32, payload string) string {
		head := append([]byte{typ, 0, 0}, binary.BigEndian.AppendUint32(nil, size)...)
		return string(head) + payload
	}
	// connection.start with a text of 2 GB
	endless := "\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\x7f\xff\xff\xff"
	for name, tc := range map[string]struct {
		text string
		more string // for ever
	}{
		"SSH":                 {"SSH-2.0-OpenSSH_9.6\r\n", ""},
		"SMTP":                {"220 mail.example ESMTP\r\n", ""},
		"HTTP":                {"HTTP/1.1 400 Bad Request\r\n\r\n", ""},
		"PostgreSQL":          {"E\x00\x00\x00\x5cSFATAL\x00", ""},
		"another AMQP":        {"AMQP\x00\x01\x00\x00", ""},
		"frame of 4 GB":       {start(1, 1<<32-1, ""), strings.Repeat("x", 4096)},
		"endless text":        {start(1, 4000, endless), strings.Repeat("x", 4096)},
		"endless heartbeats":  {"", "\x08\x00\x00\x00\x00\x00\x00\xce"},
		"a body before hello": {start(3, 4000, ""), strings.Repeat("x", 4096)},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan struct{})
			go func() {
				defer close(served)
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					_, err = io.WriteString(c, tc.text)
					for err == nil && tc.more != "" {
						_, err = io.WriteString(c, tc.more)
					}
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				}
			}()
			defer func() {
				_ = ln.Close()
				<-served
			}()
			cfg := DefaultConfig()
			cfg.URL = "amqp://u:hidden@" + ln.Addr().String() + "/"
			s := newSink(t, cfg)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err = s.Publish(soon(t), sinktest.Records(bound, "k", 0, 3))
			runtime.ReadMemStats(&after)
			var setup *relay.SetupError
			if !errors.As(err, &setup) || !strings.Contains(err.Error(), ln.Addr().String()) || strings.Contains(err.Error(), "hidden") {
				t.Errorf("got %v, want what to check, with the address", err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
				t.Errorf("%d bytes allocated", n)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
