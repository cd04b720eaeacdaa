package cdc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Source opens replication slots in one database. Beside its streams it holds the two connections
// that these have in common. Its methods may be called from several goroutines.
type Source struct {
	cfg       Config
	conn      *pgconn.Config
	walsender map[string]string // what a replication connection asks for
	log       hclog.Logger
	lookEvery time.Duration // see stream.watch
	looks     common        // at table and publications
	origins   origins

	mu       sync.Mutex // guards what follows
	slots    map[string]memory
	silences map[string]silence
	stumbles map[string]stumble
	// textual are the slots that are read as text, because a column has had a type that is read in
	// no other way.
	textual map[string]bool
	// unfiltered are the slots that are read with all origins, because somebody else writes under
	// one.
	unfiltered map[string]bool
}

var _ relay.Source = (*Source)(nil)

// purposeOf is what our walsender for a slot is for, and applicationFor its name in
// pg_stat_replication. By it a relay recognises a connection that a former owner of the slot has
// left behind.
func purposeOf(slot string) string { return "slot " + slot }

func applicationFor(slot string) string { return sessions.Name(purposeOf(slot)) }

// New returns a source. It makes no connection; the error is about the configuration.
func New(cfg Config, log hclog.Logger) (*Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	address, err := sessions.Parse(cfg.DatabaseURL)
	if err != nil {
		return nil, err
	}
	conn := &address.Config
	// PostgreSQL 18 warns when it leaves out the rows of a publication that it does not find. That
	// must not be turned off.
	conn.RuntimeParams["client_min_messages"] = "warning"
	walsender := map[string]string{
		"replication":        "database",
		"wal_sender_timeout": strconv.FormatInt(cfg.WALSenderTimeout.Milliseconds(), 10) + "ms",
	}
	s := &Source{cfg: cfg, conn: conn, walsender: walsender, log: log.Named("cdc"), lookEvery: lookEvery, slots: make(map[string]memory), silences: make(map[string]silence), stumbles: make(map[string]stumble), textual: make(map[string]bool), unfiltered: make(map[string]bool)}
	s.looks = common{open: s.ordinary, turn: relay.NewTurn()}
	s.origins.common = common{open: s.openOrigins, turn: relay.NewTurn()}
	return s, nil
}

// session is a replication connection before it streams; it takes SQL by the simple protocol.
type session struct {
	conn   *pgconn.PgConn
	in     *reader
	server int    // major version
	role   string // ours
	dbname string // the database's name, after inspect
}

func (s *Source) connect(ctx context.Context, slot string) (*session, error) {
	sess := &session{role: s.conn.User}
	var conn *pgconn.PgConn
	// The walsender that we have just closed, or that of the slot's former owner, may need a moment
	// to go.
	end := time.Now().Add(walsenderPatience)
	err := relay.Retry(ctx, relay.Backoff{Min: walsenderPatience / 20, Max: walsenderPatience / 20}, func() (err error) {
		conn, err = sessions.OpenDirect(ctx, s.conn, sessions.Options{
			Purpose: purposeOf(slot),
			Direct:  s.walsender,
			Frontend: func(r io.Reader, w io.Writer) *pgproto3.Frontend {
				sess.in = newReader(r)
				return pgproto3.NewFrontend(sess.in, w)
			},
		})
		return err
	}, func(err error, _ time.Duration) bool {
		return sessions.Code(err) == sessions.TooManyConnections && time.Now().Before(end)
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s for replication: %w", sessions.AddressOf(s.conn), sessions.RefusedReplication(err, s.conn.User))
	}
	sess.conn = conn
	version := conn.ParameterStatus("server_version")
	sess.server = sessions.MajorVersion(version)
	if err := sessions.TooOld(sess.server, version); err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return sess, nil
}

// walsenderPatience is how long a server without a free connection or walsender is asked again
// before that is reported.
const walsenderPatience = 2 * time.Second

// Check implements relay.Source: it connects and looks, and leaves everything as it is. A slot that
// is missing or in use is no fault, nor is a missing publication that we may make.
func (s *Source) Check(ctx context.Context, set relay.Set) error {
	sess, err := s.connect(ctx, "check")
	if err != nil {
		return err
	}
	defer sess.conn.Close(ctx) //nolint:errcheck // nothing depends on it
	for _, shard := range set.All() {
		table, err := sess.inspect(ctx, shard, true)
		if err == nil && !table.published {
			var may bool
			if may, err = sess.mayPublish(ctx, table); err == nil && !may {
				err = sess.publicationRefused(shard, table, nil)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ExamineConnection makes a replication connection as the relay does, and does nothing else.
func (s *Source) ExamineConnection(ctx context.Context) relay.Examined {
	return relay.Examine(ctx, []relay.Look{{Check: "replication", Make: func(ctx context.Context) (string, []*relay.SetupError, error) {
		sess, err := s.connect(ctx, "check")
		if err != nil {
			return "", nil, err
		}
		defer sess.conn.Close(ctx) //nolint:errcheck // nothing depends on it
		rows, err := sess.query(ctx, "SHOW wal_sender_timeout")
		if err != nil {
			return "", nil, err
		}
		return "a replication connection works, wal_sender_timeout " + rows[0][0], nil, nil
	}}})[0]
}

// Open implements relay.Source.
func (s *Source) Open(ctx context.Context, shard relay.Shard, known relay.LSN) (relay.Stream, error) {
	sess, err := s.connect(ctx, shard.Slot)
	if err != nil {
		return nil, err
	}
	stream, err := s.open(ctx, sess, shard, known)
	if err != nil {
		_ = sess.conn.Close(ctx)
		return nil, err
	}
	return stream, nil
}

func (s *Source) open(ctx context.Context, sess *session, shard relay.Shard, known relay.LSN) (*stream, error) {
	slot := shard.Slot
	table, err := sess.inspect(ctx, shard, true)
	if err != nil {
		return nil, err
	}
	if err := s.readable(ctx, sess, table, shard, known); err != nil {
		return nil, err
	}
	// proto_version 1 has no streaming of open transactions, so all that arrives is committed.
	args := []string{
		"proto_version '1'",
		"publication_names " + quoteLiteral(quoteIdent(shard.Publication)),
	}
	binary := table.readsBinary() && !s.readsText(slot)
	if binary {
		args = append(args, "binary 'true'")
	}
	filter := s.filter(ctx, slot, sess.server)
	if filter != nil {
		args = append(args, "origin 'none'")
	}
	err = pglogrepl.StartReplication(ctx, sess.conn, slot, 0, pglogrepl.StartReplicationOptions{Mode: pglogrepl.LogicalReplication, PluginArgs: args})
	if err != nil {
		return nil, s.notStarted(ctx, sess, slot, err)
	}
	s.carried(slot, table.version, table.content)
	s.log.Info("streaming", "slot", slot, "publication", shard.Publication, "server", sess.conn.ParameterStatus("server_version"))
	st := &stream{
		source: s, cfg: &s.cfg, log: s.log, shard: shard, slot: slot, role: sess.role, conn: sess.conn, in: sess.in,
		version: table.version, content: table.content, binary: binary, filter: filter,
		dec: pgoutput.NewDecoder(table.oid), reply: make(chan struct{}, 1),
	}
	st.dec.MaxEventBytes = s.cfg.MaxEventBytes
	st.dec.Unchecked = sessions.Encoding(sess.conn) == sessions.AnyBytes
	sess.in.grow(shard.Set.Shards)
	sess.in.frames.limit, sess.in.frames.needs = s.cfg.MaxEventBytes, st.dec.Needs
	if !binary {
		sess.in.frames.limit = 2 * s.cfg.MaxEventBytes // the text of a bytea is twice as long as what counts
	}
	st.last.Store(time.Now().UnixNano())
	return st, nil
}

// readable returns what keeps the slot from being read, or from delivering everything.
func (s *Source) readable(ctx context.Context, sess *session, table *outbox, shard relay.Shard, known relay.LSN) error {
	slot := shard.Slot
	there, err := sess.slotState(ctx, slot)
	if err != nil {
		return err
	}
	if there == nil {
		return s.gone(slot, relay.GoneMissing, nil)
	}
	if err := there.ours(slot, sess.dbname); err != nil {
		return err
	}
	switch {
	case there.lost != "":
		return s.gone(slot, relay.GoneLost, errors.New(there.lost))
	case !table.published:
		return s.gone(slot, relay.GonePublication, fmt.Errorf("publication %q does not exist", shard.Publication))
	case there.active:
		// Whoever reads it may move it: how far it got is known when it is free.
		return sess.busy(ctx, slot, errInUse)
	case known != 0 && there.confirmed > known:
		return s.gone(slot, relay.GoneMoved, fmt.Errorf("it is at %s, and the relay has let it go to %s only", there.confirmed, known))
	case s.recall(slot).made == table.version:
		return nil
	case s.recall(slot).content == table.content:
		return s.touched(slot, table.version, fmt.Errorf("publication %q was altered, and carries the same as before", shard.Publication))
	}
	changed, err := sess.changedSince(ctx, shard.Publication, table, slot)
	if err == nil && changed {
		err = s.gone(slot, relay.GonePublication, fmt.Errorf("publication %q was changed since", shard.Publication))
	}
	return err
}

// notStarted returns why the stream did not start. Since our look at the slot it may have changed
// hands, or gone.
func (s *Source) notStarted(ctx context.Context, sess *session, slot string, err error) error {
	err = fmt.Errorf("start replication on slot %q: %w", slot, err)
	if sess.untilReady(ctx) != nil {
		return err
	}
	if sessions.Code(err) == sessions.InUse {
		return sess.busy(ctx, slot, err)
	}
	there, look := sess.slotState(ctx, slot)
	switch {
	case look != nil:
		return err
	case there == nil:
		return s.gone(slot, relay.GoneMissing, err)
	case there.lost != "":
		return s.gone(slot, relay.GoneLost, err)
	}
	return classify(err, sess.role)
}
