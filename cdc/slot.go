package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// slot is a row of pg_replication_slots.
type slot struct {
	plugin, kind, database string
	active                 bool      // a connection reads it, or makes it just now
	confirmed              relay.LSN // 0 while it is being made
	// its position, as text: that of another slot under the name is another
	at   string
	lost string // why the server has given it up; empty if it has not
}

// slotState returns nil when there is no such slot.
func (s *session) slotState(ctx context.Context, name string) (*slot, error) {
	// invalidation_reason is there from PostgreSQL 17 on, conflicting in 16 and later.
	rows, err := s.query(ctx, `SELECT coalesce(plugin, ''), slot_type, coalesce(database, ''), active, coalesce(confirmed_flush_lsn::text, ''),
			concat_ws(', ', CASE WHEN wal_status = 'lost' THEN 'wal_status = lost' END,
				'invalidation_reason = ' || (to_jsonb(s) ->> 'invalidation_reason'), CASE WHEN to_jsonb(s) ->> 'conflicting' = 'true' THEN 'conflicting' END),
			`+slotAt+`
		FROM pg_replication_slots s WHERE slot_name = `+quoteLiteral(name))
	if err != nil {
		return nil, fmt.Errorf("look at slot %q: %w", name, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	r := rows[0]
	sl := &slot{plugin: r[0], kind: r[1], database: r[2], active: r[3] == "t", lost: r[5], at: r[6]}
	if r[4] != "" {
		if sl.confirmed, err = relay.ParseLSN(r[4]); err != nil {
			return nil, fmt.Errorf("look at slot %q: %w", name, err)
		}
	}
	return sl, nil
}

// slotAt is the position of a slot in pg_replication_slots.
const slotAt = `concat_ws(' ', restart_lsn, confirmed_flush_lsn)`

// ours returns an error for a slot that only has the name of one that a relay can read.
func (sl *slot) ours(name, database string) error {
	fault, instead := "", "another name"
	switch {
	case sl.kind == "logical" && sl.database != database:
		// first: what a neighbour's slot is made for is the neighbour's business
		fault, instead = fmt.Sprintf("slot %q belongs to database %q, not %q", name, sl.database, database), NeighbourlySlot(name, database)
	case sl.kind != "logical":
		fault = fmt.Sprintf("slot %q is a %s slot, a logical one is needed", name, sl.kind)
	case sl.plugin == "" && sl.database == database:
		// The server shows a slot from before it knows its plugin (slot.c, ReplicationSlotCreate;
		// logical.c, CreateInitDecodingContext).
		return fmt.Errorf("%w: slot %q is being made by somebody just now", relay.ErrSlotBusy, name)
	case sl.plugin != "pgoutput":
		fault = fmt.Sprintf("slot %q was made for plugin %s, not pgoutput", name, sl.plugin)
	default:
		return nil
	}
	return &relay.SetupError{
		Problem: fault, Streaming: true,
		Fix: "leave that slot alone, somebody else made it, and set RELAY_SLOT=" + instead,
	}
}

// ForeignSlot is the error for a slot that only has the name of ours; nil for one of ours.
func ForeignSlot(name, kind, plugin, of, database string) *relay.SetupError {
	var setup *relay.SetupError
	_ = errors.As((&slot{kind: kind, plugin: plugin, database: of}).ours(name, database), &setup)
	return setup
}

// NeighbourlySlot is a name for a slot that another database of the server does not use, in the
// letters that slots may have. Slots belong to the server, and the default name is the same
// everywhere. The relay does not choose this name by itself: it would leave the former slot behind,
// with the WAL that it holds back.
func NeighbourlySlot(name, database string) string {
	letters := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '_'
		}
	}, name+"_"+database)
	return letters[:min(len(letters), 63)]
}

// createSlot makes the slot and returns its consistent point. The server waits for all transactions
// that are under way.
func (s *session) createSlot(ctx context.Context, name string, failover bool) (relay.LSN, error) {
	options := "NOEXPORT_SNAPSHOT"
	if s.server >= 15 {
		options = "(SNAPSHOT 'nothing')"
	}
	if s.server >= 17 && failover {
		options = "(SNAPSHOT 'nothing', FAILOVER true)"
	}
	rows, err := s.query(ctx, fmt.Sprintf("CREATE_REPLICATION_SLOT %s LOGICAL pgoutput %s", quoteIdent(name), options))
	if sessions.Code(err) == sessions.DuplicateObject {
		return 0, fmt.Errorf("create slot %q: another relay was faster: %w", name, err)
	}
	if err != nil {
		return 0, fmt.Errorf("create slot %q: %w", name, classify(err, s.role))
	}
	at, err := relay.ParseLSN(rows[0][1])
	if err != nil {
		return 0, fmt.Errorf("create slot %q: its consistent point: %w", name, err)
	}
	return at, nil
}

// dropSlot drops a slot of ours, which was seen before. One that is gone already is no fault. A
// former owner that still reads it is ended.
//
// Between the look and here the process may have been frozen, and another relay may have made the
// slot again. So what is dropped has to be at the position of the slot that was seen, and the lease
// has to be ours still.
func (s *session) dropSlot(ctx context.Context, name string, seen *slot) error {
	if !relay.Fence(ctx)() {
		return fmt.Errorf("drop slot %q: %w", name, relay.ErrLeaseLost)
	}
	rows, err := s.query(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = "+quoteLiteral(name)+" AND "+slotAt+" = "+quoteLiteral(seen.at))
	switch {
	case err == nil && len(rows) == 0:
		there, err := s.slotState(ctx, name)
		if err != nil || there == nil {
			return err
		}
		return fmt.Errorf("%w: slot %q was made again, or read, by somebody just now", relay.ErrSlotBusy, name)
	case err == nil || sessions.Code(err) == sessions.UndefinedObject:
		return nil
	case sessions.Code(err) == sessions.InUse:
		return s.busy(ctx, name, err)
	default:
		return fmt.Errorf("drop slot %q: %w", name, classify(err, s.role))
	}
}

// errInUse is what the server would report.
var errInUse = errors.New("it is in use")

// busy returns an error that names who reads the slot. We hold the slot's lease, so a relay's
// walsender is that of an owner that is no more, or frozen: it is ended. Anybody else is left
// alone.
func (s *session) busy(ctx context.Context, name string, cause error) error {
	rows, err := s.query(ctx, `SELECT a.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), 'local'), coalesce(a.usename, '')
		FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = `+quoteLiteral(name))
	if err != nil {
		return fmt.Errorf("%w: slot %q: %w (who reads it could not be asked: %w)", relay.ErrSlotBusy, name, cause, err)
	}
	if len(rows) == 0 { // let go of meanwhile
		return fmt.Errorf("%w: slot %q: %w", relay.ErrSlotBusy, name, cause)
	}
	r := rows[0]
	if r[1] == applicationFor(name) && relay.Fence(ctx)() {
		if _, err := s.query(ctx, `SELECT pg_terminate_backend(`+r[0]+`)`); err != nil {
			return fmt.Errorf("%w: slot %q is still read by a former owner (pid %s from %s as %s), which we may not end: %w", relay.ErrSlotBusy, name, r[0], r[2], r[3], err)
		}
		return fmt.Errorf("%w: slot %q was still read by a former owner (pid %s from %s), which was ended", relay.ErrSlotBusy, name, r[0], r[2])
	}
	return fmt.Errorf("%w: slot %q is read by pid %s (%s from %s as %s); to end it: SELECT pg_terminate_backend(%s);", relay.ErrSlotBusy, name, r[0], r[1], r[2], r[3], r[0])
}

// untilReady reads what is left of the answer to a statement that failed. pglogrepl reads an answer
// up to the error only; what is left would be taken for the answer to the next statement.
func (s *session) untilReady(ctx context.Context) error {
	for {
		msg, err := s.conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		if _, ok := msg.(*pgproto3.ReadyForQuery); ok {
			return nil
		}
	}
}

// memory is what a source knows of a slot beyond what the server reports. It is lost with the
// process, and then a slot may be made again once more than needed.
type memory struct {
	// the server has reported that the slot cannot be read, or rows were left out: do not keep it
	spoilt bool
	// made is the version of the publication as of which the slot was made or read, or what it may
	// have left out was swept.
	made    string
	content string // what the publication carried when the slot was last read
}

func (s *Source) recall(slot string) memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slots[slot]
}

func (s *Source) remember(slot string, m memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots[slot] = m
}

// note changes what is remembered: the reader does it, and the watch next to it.
func (s *Source) note(slot string, change func(*memory)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.slots[slot]
	change(&m)
	s.slots[slot] = m
}

// carried notes what the publication carries while the slot is read.
func (s *Source) carried(slot, version, content string) {
	s.note(slot, func(m *memory) { m.made, m.content = version, content })
}

// forget forgets it: something else was seen meanwhile.
func (s *Source) forget(slot string) { s.note(slot, func(m *memory) { m.content = "" }) }

// touched makes the error for a publication that was altered, and carries what it did before: ALTER
// PUBLICATION … SET with what was set already, a new owner. The slot is kept, because making one
// may wait for hours, for any transaction of the server. It is not known whether the publication
// had another content for a moment between two looks. So the table is swept, which finds what was
// left out.
func (s *Source) touched(slot, version string, err error) error {
	s.note(slot, func(m *memory) { m.made = version })
	return &relay.SlotGoneError{Slot: slot, Cause: relay.GonePublication, Err: err}
}

// gone makes the error, and notes for Create what it means for the slot.
func (s *Source) gone(slot string, cause relay.GoneCause, err error) error {
	if cause == relay.GoneLost || cause == relay.GonePublication || cause == relay.GoneUnreadable {
		s.note(slot, func(m *memory) { m.spoilt, m.content = true, "" })
	}
	return &relay.SlotGoneError{Slot: slot, Cause: cause, Err: err}
}

// Create implements relay.Source. The server first waits for the end of all transactions under way.
//
// A slot is not kept if it is lost, if its publication had to be made or was changed (pgoutput does
// not see what is younger than what it decodes), or if Open or Run has found that it cannot be
// read.
func (s *Source) Create(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
	slot := shard.Slot
	sess, err := s.connect(ctx, slot)
	if err != nil {
		return 0, err
	}
	defer sess.conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing depends on it
	table, err := sess.inspect(ctx, shard, true)
	if err != nil {
		return 0, err
	}
	there, err := sess.slotState(ctx, slot)
	if err != nil {
		return 0, err
	}
	if there != nil {
		if err := there.ours(slot, sess.dbname); err != nil {
			return 0, err
		}
	}
	known := s.recall(slot)
	spoilt := known.spoilt
	switch {
	case !table.published: // this first, so that the slot sees it
		if err := sess.createPublication(ctx, shard, table); err != nil {
			return 0, err
		}
		s.log.Info("publication created", "publication", shard.Publication, "table", table.name)
		spoilt = true
		s.remember(slot, memory{spoilt: there != nil})
		if table, err = sess.inspect(ctx, shard, true); err != nil { // somebody may have been faster
			return 0, err
		}
	case there != nil && known.made != table.version:
		if changed, err := sess.changedSince(ctx, shard.Publication, table, slot); err != nil {
			return 0, err
		} else if changed {
			spoilt = true
		}
	}
	if there != nil {
		if there.lost == "" && there.confirmed != 0 && !spoilt {
			return there.confirmed, nil
		}
		if err := sess.dropSlot(ctx, slot, there); err != nil {
			return 0, err
		}
		s.log.Info("slot dropped", "slot", slot, "lost", there.lost != "")
	}
	at, err := sess.createSlot(ctx, slot, s.cfg.Failover)
	if err != nil {
		return 0, err
	}
	s.remember(slot, memory{made: table.version, content: table.content})
	s.log.Info("slot created", "slot", slot, "lsn", at)
	return at, nil
}

// EnsureSlot makes the shard's slot if it is missing, and reports whether it did. The server first waits
// for the end of all transactions under way. Unlike Create it drops nothing.
func (s *Source) EnsureSlot(ctx context.Context, shard relay.Shard) (made bool, err error) {
	name := shard.Slot
	sess, err := s.connect(ctx, name)
	if err != nil {
		return false, err
	}
	defer sess.conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing depends on it
	if _, err := sess.inspect(ctx, shard, true); err != nil {
		return false, err
	}
	there, err := sess.slotState(ctx, name)
	switch {
	case err != nil:
		return false, err
	case there == nil:
		defer s.logHolders(ctx, name)()
		_, err = sess.createSlot(ctx, name, s.cfg.Failover)
		return err == nil, err
	case there.lost != "":
		return false, &relay.SetupError{
			Problem: fmt.Sprintf("slot %q is lost, most likely because it needed more WAL than max_slot_wal_keep_size lets it keep (%s)", name, there.lost),
			Fix:     "start the relay: it makes the slot again and finds in the table what was not delivered",
		}
	default:
		return false, there.ours(name, sess.dbname)
	}
}
