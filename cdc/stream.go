package cdc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// stream is one replication connection that has been started. Run is called at most once, and Close
// in any case, after it. Feedback begins with Run and ends with Close, because what is in flight
// when Run has returned may take longer to drain than the server keeps a silent connection.
type stream struct {
	source   *Source
	cfg      *Config
	log      hclog.Logger
	shard    relay.Shard
	slot     string // the shard's
	role     string
	version  string        // of the publication as of Open
	binary   bool          // values come in their types' binary form
	filter   *originFilter // nil: all origins are read
	verified bool          // that nothing was hidden before the transaction that was begun last
	content  string        // what it carries
	conn     *pgconn.PgConn
	in       *reader
	dec      *pgoutput.Decoder

	intake relay.Intake
	batch  []relay.Event // decoded, not handed on yet; owned by the reader goroutine
	bytes  int

	reply chan struct{} // capacity one: the server asks for feedback now
	last  atomic.Int64  // unix nanoseconds of the last message from the server
	deaf  atomic.Bool   // Run has returned: nobody reads what the server sends

	stopFeedback  context.CancelFunc // nil before Run
	feedbackEnded chan struct{}
}

var _ relay.Stream = (*stream)(nil)

// Events are handed on when the socket runs dry, or in pieces of this size. What is gathered is not
// in the in-flight budget, so a slot among several has a part of it.
const (
	batchEvents = 512
	batchBytes  = 512 << 10
	shardBytes  = 64 << 10
)

// errStopped is what a read returns after the context has ended.
var errStopped = errors.New("stopped")

// Run implements relay.Stream.
func (s *stream) Run(ctx context.Context, in relay.Intake) error {
	s.intake = in
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	netConn := s.conn.Conn()
	s.in.conn, s.in.silence, s.in.lowWater = netConn, s.source.silenceOf(s.slot), lowWater(netConn)
	s.in.before = func() error {
		if err := s.handOn(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return errStopped
		}
		return nil
	}

	var reporting context.Context
	reporting, s.stopFeedback = context.WithCancel(context.WithoutCancel(ctx))
	s.feedbackEnded = make(chan struct{})
	go func() { // until Close
		defer close(s.feedbackEnded)
		if err := s.feedback(reporting); err != nil {
			cancel(fmt.Errorf("send feedback on slot %q: %w", s.slot, err))
		}
	}()
	var others sync.WaitGroup
	s.source.looks.join()
	others.Go(func() {
		if err := s.watch(ctx); err != nil {
			cancel(err)
		}
	})
	received := make(chan struct{})
	others.Go(func() {
		<-ctx.Done()
		// A read in progress ends with the context. The deadline is set again and again, because
		// the reader sets its own between its look at the context and its read.
		for {
			_ = netConn.SetReadDeadline(time.Unix(1, 0))
			select {
			case <-received:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})

	err := s.receive(ctx)
	cause := context.Cause(ctx)
	close(received)
	cancel(nil)
	others.Wait()
	s.source.looks.leave()
	s.deaf.Store(true)
	s.in.setBusy(false)
	s.in.before, s.in.conn = nil, nil
	var gone *relay.SlotGoneError
	switch {
	case cause != nil:
		return cause
	case errors.As(err, &gone):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.source.wasSilent(s.slot)
		return fmt.Errorf("receive from slot %q: the server has been silent for %s", s.slot, s.in.silence)
	case sessions.Code(err) == sessions.UndefinedObject:
		// The publication is not there as of the position that pgoutput decodes.
		return s.source.gone(s.slot, relay.GonePublication, err)
	case isUnreadable(err) && s.source.stumbled(s.slot, s.dec.At()):
		return s.source.gone(s.slot, relay.GoneUnreadable, err)
	default:
		return fmt.Errorf("receive from slot %q: %w", s.slot, classify(err, s.role))
	}
}

// receive reads messages until something fails.
func (s *stream) receive(ctx context.Context) error {
	frontend := s.conn.Frontend()
	for {
		msg, err := frontend.Receive()
		if err != nil {
			return err
		}
		switch m := msg.(type) {
		case *pgproto3.CopyData:
			if err := s.copyData(ctx, m.Data); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(m)
		case *pgproto3.NoticeResponse:
			// From PostgreSQL 18 on, "skipped loading publication": it goes on without the rows.
			// The code alone is not enough: a standby of synchronized_standby_slots that is away
			// has the same (slot.c), and delays everything without losing anything.
			if m.Code == sessions.NotInState && m.SeverityUnlocalized == "WARNING" && m.File == "pgoutput.c" {
				return s.source.gone(s.slot, relay.GonePublication, pgconn.ErrorResponseToPgError((*pgproto3.ErrorResponse)(m)))
			}
		case *pgproto3.CopyDone:
			return errors.New("the server ended the stream")
		}
	}
}

func (s *stream) copyData(ctx context.Context, data []byte) error {
	if len(data) == 0 {
		return errors.New("empty CopyData")
	}
	switch data[0] {
	case pglogrepl.XLogDataByteID:
		// int64 start, int64 end, int64 send time, then the plugin's message
		if len(data) < 1+24 {
			return fmt.Errorf("XLogData of %d bytes", len(data))
		}
		return s.decode(ctx, data[1+24:])
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		m, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return err
		}
		received := time.Now()
		s.last.Store(received.UnixNano())
		if err := s.handOn(ctx); err != nil {
			return err
		}
		// The position is how far decoding has come: whatever was committed before it has been sent
		// before this message (walsender.c, WalSndKeepalive). Inside a transaction it lies before
		// that one's commit.
		if s.dec.InTransaction() {
			s.intake.Heard(relay.LSN(m.ServerWALEnd))
		} else if err := s.pass(ctx, relay.LSN(m.ServerWALEnd), received); err != nil {
			return err
		}
		if m.ReplyRequested {
			relay.Wake(s.reply)
		}
	}
	return nil
}

func (s *stream) decode(ctx context.Context, msg []byte) error {
	kind, err := s.dec.Decode(msg)
	if err != nil {
		return err
	}
	switch kind {
	case pgoutput.Insert:
		s.batch = append(s.batch, s.dec.Event)
		s.bytes += s.dec.Event.Size()
		if len(s.batch) >= batchEvents || s.bytes >= max(batchBytes/max(s.shard.Set.Shards, 1), shardBytes) {
			return s.handOn(ctx)
		}
	case pgoutput.Begin:
		s.verified = s.filter == nil
	case pgoutput.Commit:
		// The position must not overtake the events that are still gathered, so it travels with the
		// last of them.
		if n := len(s.batch); n > 0 {
			s.batch[n-1].CommitEnd = s.dec.CommitEnd
		} else {
			if !s.verified { // its events were, if it had any
				if err := s.verify(ctx); err != nil {
					return err
				}
			}
			s.intake.Pass(s.dec.CommitEnd)
		}
	case pgoutput.Relation:
		return s.described(ctx)
	case pgoutput.Truncate:
		s.log.Warn("the outbox table was truncated: rows that were not delivered are gone, by somebody's decision")
	}
	return nil
}

// handOn gives what is gathered to the intake, which may take its time.
func (s *stream) handOn(ctx context.Context) error {
	if len(s.batch) == 0 {
		return nil
	}
	if err := s.verify(ctx); err != nil {
		return err
	}
	err := s.intake.Admit(ctx, s.batch)
	clear(s.batch)
	s.batch, s.bytes = s.batch[:0], 0
	return err
}

// feedback reports the watermark every StatusInterval, and when the server asks, until ctx ends.
func (s *stream) feedback(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.StatusInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.reply:
		case <-ctx.Done():
			return nil
		}
		quiet := !s.deaf.Load() && time.Since(time.Unix(0, s.last.Load())) > s.cfg.askAfter()
		if err := s.report(quiet); err != nil {
			return err
		}
	}
}

// report sends one status update. Only one goroutine at a time may call it.
func (s *stream) report(askReply bool) error {
	if err := s.conn.Conn().SetWriteDeadline(time.Now().Add(s.cfg.WALSenderTimeout)); err != nil {
		return err
	}
	at := pglogrepl.LSN(s.intake.Watermark())
	return pglogrepl.SendStandbyStatusUpdate(context.Background(), s.conn, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: at, WALFlushPosition: at, WALApplyPosition: at, ReplyRequested: askReply,
	})
}

// Close implements relay.Stream. The server has taken the last report when it answers our CopyDone,
// because it reads in order.
func (s *stream) Close(ctx context.Context) error {
	defer s.conn.Close(ctx) //nolint:errcheck // the connection is given up whatever it returns
	if s.filter != nil {
		defer s.filter.close()
	}
	if s.intake == nil {
		return nil
	}
	s.stopFeedback()
	select {
	case <-s.feedbackEnded:
	case <-ctx.Done(): // it is stuck in a write: the server takes nothing any more
		_ = s.conn.Conn().Close()
		<-s.feedbackEnded
		return fmt.Errorf("send last feedback on slot %q: %w", s.slot, context.Cause(ctx))
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := s.conn.Conn().SetDeadline(deadline); err != nil {
			return err
		}
	}
	if err := s.report(false); err != nil {
		return fmt.Errorf("send last feedback on slot %q: %w", s.slot, err)
	}
	frontend := s.conn.Frontend()
	frontend.Send(&pgproto3.CopyDone{})
	if err := frontend.Flush(); err != nil {
		return fmt.Errorf("end the stream of slot %q: %w", s.slot, err)
	}
	for {
		msg, err := frontend.Receive()
		if err != nil {
			return fmt.Errorf("end the stream of slot %q: %w", s.slot, err)
		}
		switch m := msg.(type) {
		case *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
			return nil
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("end the stream of slot %q: %w", s.slot, pgconn.ErrorResponseToPgError(m))
		}
	}
}
