// Package admin serves what operators and probes ask over HTTP: /metrics, /health/live, /health/ready, /status.json. It keeps no
// state of its own and does not know where the numbers come from.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sagaz-relay/relay/relay"
)

// Server is the HTTP side of one process.
type Server struct {
	listener net.Listener
	http     *http.Server
	log      hclog.Logger
}

// Listen binds the address; the error says which setting to change. Serve then answers.
func Listen(addr string, status func() relay.Status, metrics prometheus.Gatherer, log hclog.Logger) (*Server, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve metrics on %s: %w: set METRICS_PORT or RELAY_HTTP_ADDR to an address that is free", addr, err)
	}
	return &Server{
		listener: listener,
		http:     &http.Server{Handler: Handler(status, metrics), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute},
		log:      log.Named("admin"),
	}, nil
}

// Addr is the address that is bound.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Serve answers until ctx ends, and a moment longer for requests under way.
func (s *Server) Serve(ctx context.Context) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.http.Shutdown(last) != nil {
			_ = s.http.Close() // somebody reads too slowly
		}
	})
	err := s.http.Serve(s.listener)
	if !stop() {
		<-done // Serve returns when the shutdown begins, not when it is over
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", s.Addr(), err)
	}
	return nil
}

// Handler answers the four paths.
//
// /health/live says that the process turns over; it never depends on database or brokers, because a restart would not
// mend those. /health/ready says that this relay does its part: it owns its slots and moves, or stands by.
func Handler(status func() relay.Status, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /health/live", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /health/ready", func(w http.ResponseWriter, _ *http.Request) {
		st := status()
		problems := st.Problems()
		if len(problems) > 0 {
			reply(w, http.StatusServiceUnavailable, map[string]any{"status": "not ready", "problems": problems})
			return
		}
		reply(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, status())
	})
	return mux
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the peer has gone; there is nobody to tell
}
