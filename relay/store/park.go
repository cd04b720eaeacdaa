package store

import (
	"cmp"
	"slices"

	"github.com/sagaz-relay/relay/relay"
)

// parkSQL writes entries. One in stateFree was not refused: it becomes held when something in front
// of it blocks, otherwise it is to retry now. That takes one index probe an entry, and no probe
// when nothing of the slot blocks, which is asked once a statement. The stream has only the lower
// half of the transaction id: the upper half is added here.
var parkSQL = `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, commit_lsn, xid, state, attempts, next_attempt_at, reason, last_error, detached, event_at)
	SELECT p.event_id, p.sink, p.slot, p.position, p.partition_key, p.key_hash, p.event_type, CASE WHEN p.commit_lsn > 0 THEN '0/0'::pg_lsn + p.commit_lsn END,
		CASE WHEN p.xid > 0 THEN (now.xmax + ((((p.xid - now.xmax) % 4294967296) + 6442450944) % 4294967296 - 2147483648))::text::xid8 END,
		CASE WHEN p.state <> 'free' THEN p.state
			WHEN NOT (SELECT EXISTS (SELECT FROM saga_outbox_delivery WHERE slot = $2 AND ` + blocking + `)) THEN 'retry'
			WHEN ` + anyInFront(blocking, "p") + ` THEN 'held'
			ELSE 'retry' END,
		p.attempts, CASE WHEN p.delay > 0 THEN clock_timestamp() + make_interval(secs => p.delay) END, nullif(p.reason, ''), nullif(p.error, ''), p.detached, CASE WHEN p.at <> 0 THEN timestamptz '2000-01-01 00:00:00+00' + p.at * interval '1 microsecond' END
	FROM (SELECT *, $2::text AS slot FROM unnest($1::uuid[], $4::text[], $5::bigint[], $6::text[], $7::int[], $8::text[], $9::bigint[], $10::bigint[], $11::text[], $12::int[], $13::float8[], $14::text[], $15::text[], $16::boolean[], $17::bigint[])
		AS u (event_id, sink, position, partition_key, key_hash, event_type, commit_lsn, xid, state, attempts, delay, reason, error, detached, at)) p,
		(SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax) AS now
	WHERE true` + owned + `
	ON CONFLICT (event_id, sink) DO NOTHING`

// stateFree is the state of an entry for which parkSQL decides between held and retry.
const stateFree = "free"

// entries are ledger entries to be made, a column each.
type entries struct {
	ids       uuids
	sinks     []string
	positions []int64
	keys      []string
	hashes    []int32
	types     []string
	commits   []int64
	xids      []int64
	states    []string
	attempts  []int32
	delays    []float64
	reasons   []string
	errors    []string
	detached  []bool
	ats       []int64
}

// lineOf names a line: a key at a sink.
type lineOf struct{ sink, key string }

// gather makes entries of marks. What is held behind an entry of the same batch is decided here:
// parkSQL does not see those yet.
func (e *entries) gather(marks []relay.Mark) {
	parked := make([]*relay.Mark, 0, len(marks))
	for i := range marks {
		if len(marks[i].Parked) > 0 {
			parked = append(parked, &marks[i])
		}
	}
	slices.SortStableFunc(parked, func(a, b *relay.Mark) int { return cmp.Compare(a.Position, b.Position) })
	var blocked map[lineOf]bool
	for _, m := range parked {
		for i := range m.Parked {
			p := &m.Parked[i]
			line := lineOf{p.Sink, m.Key}
			state := string(p.State)
			switch {
			case p.State == relay.StateHeld && blocked[line]:
			case p.State == relay.StateHeld:
				state = stateFree
			case p.Detached:
			case p.State == relay.StateDead || p.Delay > 0:
				if blocked == nil {
					blocked = make(map[lineOf]bool)
				}
				blocked[line] = true
			}
			e.add(m, p, state)
		}
	}
}

func (e *entries) add(m *relay.Mark, p *relay.Parked, state string) {
	e.ids = append(e.ids, m.ID)
	e.sinks = append(e.sinks, p.Sink)
	e.positions = append(e.positions, m.Position)
	e.keys = append(e.keys, m.Key)
	e.hashes = append(e.hashes, int32(m.KeyHash))
	e.types = append(e.types, m.EventType)
	e.commits = append(e.commits, int64(m.CommitLSN))
	e.xids = append(e.xids, int64(m.XID))
	e.states = append(e.states, state)
	e.attempts = append(e.attempts, int32(p.Attempts))
	delay := 0.0
	if p.State == relay.StateRetry {
		delay = p.Delay.Seconds()
	}
	e.delays = append(e.delays, delay)
	e.reasons = append(e.reasons, string(p.Reason))
	e.errors = append(e.errors, validText(p.Error))
	e.detached = append(e.detached, p.Detached)
	e.ats = append(e.ats, int64(m.At))
}

func (e *entries) queue(tx *fencedTx, l *lease) {
	tx.queue(nil, parkSQL, e.ids, l.slot, l.epoch, e.sinks, e.positions, e.keys, e.hashes, e.types, e.commits, e.xids, e.states, e.attempts, e.delays, e.reasons, l.store.allStorable(e.errors), e.detached, e.ats)
}
