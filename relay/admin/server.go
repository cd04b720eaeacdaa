package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
)

// Server is the HTTP side of one process.
type Server struct {
	listener net.Listener
	http     *http.Server
	tls      bool
}

// How long a peer may take. A scrape of many series over a slow line fits, a peer that dribbles
// does not. Together with the bounds of conns and shared this keeps HTTP from costing the engine
// its lease, whatever requests come.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
	answerTimeout  = 15 * time.Second
	idleTimeout    = time.Minute
	headerBytes    = 16 << 10
)

// Listen binds the address; the error has the setting to change. Serve then answers.
func Listen(cfg Config, shown Relay, metrics prometheus.Gatherer, log hclog.Logger) (*Server, error) {
	log = log.Named("admin")
	s := &Server{http: &http.Server{
		Handler:           Handler(cfg, shown, metrics),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytes,
		ErrorLog:          stdlog.New(debugLines{log}, "", 0),
		ConnState:         newConns().state,
		// One request at a time on a connection: nothing here gains by HTTP/2, and its streams
		// would be one more thing to bound.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}}
	if cfg.CertFile != "" {
		pair, err := loadPair(cfg.CertFile, cfg.KeyFile, log)
		if err != nil {
			return nil, err
		}
		s.http.TLSConfig, s.tls = pair.config(), true
	}
	var err error
	if s.listener, err = net.Listen("tcp", cfg.Addr); err != nil {
		return nil, fmt.Errorf("serve metrics on %s: %w: set METRICS_PORT or RELAY_HTTP_ADDR to an address of this machine that is free", cfg.Addr, err)
	}
	return s, nil
}

// Addr is the address that is bound.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// URL is where a browser finds it.
func (s *Server) URL() string {
	addr := s.Addr()
	if host, port, err := net.SplitHostPort(addr); err == nil && net.ParseIP(host).IsUnspecified() {
		addr = net.JoinHostPort("localhost", port) // [::] is no address to open in a browser
	}
	if s.tls {
		return "https://" + addr
	}
	return "http://" + addr
}

// Serve answers until ctx ends, and a moment longer for requests under way.
func (s *Server) Serve(ctx context.Context) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.http.Shutdown(last) != nil {
			_ = s.http.Close() // a client reads too slowly
		}
	})
	serve := s.http.Serve
	if s.tls {
		serve = func(l net.Listener) error { return s.http.ServeTLS(l, "", "") }
	}
	err := serve(s.listener)
	if !stop() {
		<-done // Serve returns when the shutdown begins, not when it is over
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", s.Addr(), err)
	}
	return nil
}

// debugLines takes what net/http logs of peers that break off in the middle of a handshake: port
// scans and load balancers do.
type debugLines struct{ log hclog.Logger }

func (d debugLines) Write(line []byte) (int, error) {
	d.log.Debug("http", "error", string(line))
	return len(line), nil
}
