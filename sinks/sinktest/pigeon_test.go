package sinktest_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// What follows is the example of docs/sinks.md, which TestPigeonIsInTheDocument compares.

// Config is where the loft is.
type Config struct {
	relay.Named // there may be several lofts

	// Address is the loft's host:port.
	//
	// Default localhost:7000. PIGEON_ADDRESS.
	Address string `env:"PIGEON_ADDRESS"`

	// Password opens the loft.
	//
	// No default. PIGEON_PASSWORD.
	Password string `env:"PIGEON_PASSWORD" secret:"true"`
}

func DefaultConfig() Config { return Config{Address: "localhost:7000"} }

func (c Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return errors.New("PIGEON_ADDRESS: want host:port") // an error may not repeat a value
	}
	return nil
}

// Sink sends a line for each record, and reads a line with its outcome.
type Sink struct {
	cfg  Config
	ctx  context.Context // ends with Close
	end  context.CancelFunc
	turn relay.Turn // who has it owns the rest

	conn   *net.TCPConn  // nil: not connected
	in     *bufio.Reader // of conn
	unsure bool          // conn carries a record whose outcome is not known
}

func New(cfg Config, _ hclog.Logger) (*Sink, error) {
	s := &Sink{cfg: cfg, turn: relay.NewTurn()}
	s.ctx, s.end = context.WithCancel(context.Background())
	return s, cfg.Validate()
}

func (s *Sink) Name() string { return s.cfg.Called("pigeon") }

func (s *Sink) Publish(ctx context.Context, batch []*relay.Record) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)() // Close ends it, too
	fates, failed := make([]error, len(batch)), false
	held := make(map[string]bool) // keys with a refused record
	var down error                // the broker's: nothing may overtake what it has not taken
	for i, rec := range batch {
		switch {
		case held[rec.Key]:
			fates[i] = relay.ErrBehind
		case down != nil:
			fates[i] = down
		default:
			fates[i] = s.send(ctx, rec)
			if _, held[rec.Key] = relay.Refused(fates[i]); !held[rec.Key] {
				down = fates[i]
			}
		}
		failed = failed || fates[i] != nil
	}
	if failed {
		return &relay.BatchError{Errs: fates}
	}
	return nil
}

func (s *Sink) send(ctx context.Context, rec *relay.Record) error {
	line, err := json.Marshal(rec)
	if err != nil { // nothing that this broker cannot carry
		return relay.Refuse(relay.ReasonEncode, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := s.turn.Take(ctx); err != nil {
		return err
	}
	defer s.turn.Give()
	if err := s.connect(ctx); err != nil {
		return &relay.SetupError{Problem: "reach the loft at " + s.cfg.Address, Err: err, Fix: s.cfg.Said("check PIGEON_ADDRESS")}
	}
	defer s.until(ctx)()
	if !relay.Fence(ctx)() { // last of all before the write
		return relay.ErrFence
	}
	s.unsure = true
	if _, err := s.conn.Write(append(line, '\n')); err != nil {
		return err
	}
	answer, err := s.in.ReadString('\n')
	if err != nil {
		return err
	}
	if s.unsure = false; answer != "ok\n" {
		return relay.Refuse(relay.ReasonRejected, errors.New(strings.TrimSpace(answer)))
	}
	return nil
}

// connect makes sure that there is a connection without a record on it.
func (s *Sink) connect(ctx context.Context) error {
	if s.conn != nil && s.unsure { // else the broker may work it off behind what comes by another one
		defer s.until(ctx)()
		_ = s.conn.CloseWrite()
		if _, _ = io.Copy(io.Discard, s.in); ctx.Err() != nil {
			return ctx.Err()
		}
		_ = s.conn.Close()
		s.conn, s.unsure = nil, false
	}
	if s.conn != nil {
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.cfg.Address)
	if err != nil {
		return err
	}
	s.conn, s.in = conn.(*net.TCPConn), bufio.NewReader(conn)
	_, err = fmt.Fprintln(conn, s.cfg.Password)
	return err
}

// until has reads and writes end with ctx, until stop is called.
func (s *Sink) until(ctx context.Context) (stop func() bool) {
	conn := s.conn
	_ = conn.SetDeadline(time.Time{})
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

func (s *Sink) Close() error {
	s.end()
	if err := s.turn.Take(context.Background()); err != nil || s.conn == nil {
		return err
	}
	return s.conn.Close()
}
