package repair

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// Replay chooses the events to deliver once more. An empty field does not choose.
type Replay struct {
	EventIDs     []relay.UUID
	SagaID       string
	EventType    string
	Since, Until time.Time // created_at: from Since on, before Until
	Sinks        []string  // to which; at least one
	Set          relay.Set // the slots whose owners deliver them, each those of its keys
}

// Plan is what a replay found.
type Plan struct {
	Events   int `json:"events"`   // rows that were sent: to be delivered once more
	Archived int `json:"archived"` // of these, rows that are in the archive only
	// Rows that were not sent yet and are left alone, by status.
	Unsent  map[string]int `json:"unsent"`
	Missing []string       `json:"missing"` // event_ids that were asked for and are nowhere
	// NoArchive is true when saga_outbox_archive does not exist, or may not be read, so it was not
	// searched.
	NoArchive bool `json:"no_archive,omitempty"`

	chosen []replayed
	set    relay.Set
}

// replayed is an event to be delivered once more.
type replayed struct {
	id             relay.UUID
	key, eventType string
	slot           string
	archived       bool
}

// Replayed is what a replay did.
type Replayed struct {
	Done
	Restored int `json:"restored"` // rows that were copied back from the archive
	// Gone are rows that were found, and then removed, by a retention or otherwise, before they got
	// into the ledger.
	Gone []string `json:"gone,omitempty"`
}

// PlanReplay finds the events, slot by slot and there by created_at and event_id, and changes
// nothing.
func PlanReplay(ctx context.Context, conn *pgx.Conn, r Replay) (*Plan, error) {
	p := &Plan{Unsent: make(map[string]int), Missing: []string{}, set: r.Set}
	archive, err := archiveThere(ctx, conn)
	if err != nil {
		return nil, err
	}
	p.NoArchive = !archive
	var args []any
	conditions := []string{"true"}
	add := func(condition string, arg any) {
		args = append(args, arg)
		conditions = append(conditions, fmt.Sprintf(condition, len(args)))
	}
	if len(r.EventIDs) > 0 {
		add("event_id = ANY($%d::uuid[])", texts(r.EventIDs))
	}
	if r.SagaID != "" {
		add("saga_id = $%d", r.SagaID)
	}
	if r.EventType != "" {
		add("event_type = $%d", r.EventType)
	}
	if !r.Since.IsZero() {
		add("created_at >= $%d", r.Since)
	}
	if !r.Until.IsZero() {
		add("created_at < $%d", r.Until)
	}
	where := strings.Join(conditions, " AND ")
	columns := `event_id, ` + relay.RowKey + ` AS aggregate_id, event_type::text AS event_type, status, created_at, ` + r.Set.SlotSQL(relay.RowKey) + ` AS slot`
	sql := `SELECT ` + columns + `, false AS archived FROM saga_outbox WHERE ` + where
	if archive {
		sql += ` UNION ALL SELECT ` + columns + `, true FROM saga_outbox_archive a WHERE ` + where + ` AND NOT EXISTS (SELECT FROM saga_outbox o WHERE o.event_id = a.event_id)`
	}
	rows, err := conn.Query(ctx, `SELECT event_id, aggregate_id, event_type, status, slot, archived FROM (`+sql+`) e ORDER BY slot, created_at, event_id`, args...)
	if err != nil {
		return nil, fmt.Errorf("look for the events: %w", err)
	}
	var (
		id     [16]byte
		e      replayed
		status string
		found  = make(map[relay.UUID]bool)
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &e.key, &e.eventType, &status, &e.slot, &e.archived}, func() error {
		e.id = id
		if len(r.EventIDs) > 0 {
			found[e.id] = true
		}
		if status != "sent" {
			p.Unsent[status]++
			return nil
		}
		p.chosen = append(p.chosen, e)
		p.Events++
		if e.archived {
			p.Archived++
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for the events: %w", err)
	}
	for _, id := range r.EventIDs {
		if !found[id] {
			p.Missing = append(p.Missing, id.String())
		}
	}
	return p, nil
}

// The rows go in as they were, with status sent: a slot delivers the insert, and the relay skips
// what was not inserted pending. A row may have gone to the archive since it was found.
const restoreSQL = `INSERT INTO saga_outbox SELECT * FROM saga_outbox_archive a WHERE event_id = ANY($1::uuid[]) AND status = 'sent'
	AND NOT EXISTS (SELECT FROM saga_outbox o WHERE o.event_id = a.event_id OFFSET 0) ON CONFLICT (event_id) DO NOTHING`

const archivedSQL = `SELECT EXISTS (SELECT FROM saga_outbox_archive a WHERE event_id = ANY($1::uuid[]) AND status = 'sent'
	AND NOT EXISTS (SELECT FROM saga_outbox o WHERE o.event_id = a.event_id OFFSET 0))`

// thereSQL are the events whose rows are there and stay until we commit. What removes rows locks
// them, and relay.ReplayLock keeps out a retention that would not see the entries.
const thereSQL = `SELECT event_id::text FROM saga_outbox WHERE event_id = ANY($1::uuid[]) FOR KEY SHARE`

// An entry that is there stays: the event is on its way already. Detached, so that later events of
// the key are not held behind it.
const replaySQL = `INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state, detached, replayed_at)
	SELECT e.event_id, s.sink, $5, $6::bigint + e.n, e.key, e.hash, e.type, 'retry', true, now()
	FROM unnest($1::uuid[], $2::text[], $3::int[], $4::text[]) WITH ORDINALITY AS e (event_id, key, hash, type, n), unnest($7::text[]) AS s (sink)
	WHERE EXISTS (SELECT FROM saga_outbox o WHERE o.event_id = e.event_id AND o.status = 'sent' OFFSET 0)
	ON CONFLICT (event_id, sink) DO NOTHING RETURNING sink`

// Run puts the planned events into the ledger, for the slots' owners to deliver: behind what is
// there, in the order of the plan.
func (p *Plan) Run(ctx context.Context, conn *pgx.Conn, r Replay) (*Replayed, error) {
	done := &Replayed{Done: Done{Sinks: make(map[string]int)}}
	var last int64
	for at, n := 0, 0; at < len(p.chosen); at += n {
		slot := p.chosen[at].slot
		for n = 0; at+n < len(p.chosen) && n < batchSize && p.chosen[at+n].slot == slot; {
			n++
		}
		batch := p.chosen[at : at+n]
		// A detached entry blocks no other, so it does not matter when others take the same
		// positions meanwhile.
		if at == 0 || p.chosen[at-1].slot != slot {
			if err := conn.QueryRow(ctx, `SELECT coalesce(max(position), 0) FROM saga_outbox_delivery WHERE slot = $1`, slot).Scan(&last); err != nil {
				return done, fmt.Errorf("read the ledger: %w", err)
			}
		}
		var restored int
		var gone []string
		err := write(ctx, conn, slot, func(tx pgx.Tx) error {
			var made []string
			err := sameSet(ctx, tx, p.set)
			if err == nil {
				restored, gone, made, err = p.put(ctx, tx, batch, slot, r.Sinks, last)
			}
			if err == nil {
				done.add(made, (len(batch)-len(gone))*len(r.Sinks))
			}
			return err
		})
		last += int64(n)
		if err == nil {
			done.Restored += restored
			done.Gone = append(done.Gone, gone...)
		}
		if locked(err) {
			done.Locked += len(batch) * len(r.Sinks)
		} else if err != nil {
			return done, fmt.Errorf("after %d were put into the ledger: %w", done.N(), err)
		}
	}
	return done, nil
}

// ErrSetChanges is returned when the number of the table's slots is being changed, or was since the
// plan was made: an entry of a slot that is no more would stay where it is.
var ErrSetChanges = errors.New("the number of the table's slots is being changed: run it again when that has ended (sagaz-relay status)")

// sameSet makes sure that the slots of the plan are the table's until we commit, and that their
// entries are not being moved to others. Generation 0 is of a plan that was made before anybody had
// decided the number.
func sameSet(ctx context.Context, tx pgx.Tx, set relay.Set) error {
	var now relay.Set
	err := tx.QueryRow(ctx, `SELECT shards, generation FROM saga_outbox_set FOR SHARE`).Scan(&now.Shards, &now.Generation)
	switch {
	case errors.Is(err, pgx.ErrNoRows) && set.Generation == 0:
		return nil
	case err != nil:
		return fmt.Errorf("read how the table is divided: %w", err)
	case now.Shards != set.Shards, set.Generation != 0 && now.Generation != set.Generation:
		return ErrSetChanges
	}
	return nil
}

// put writes the entries of a batch, in a transaction that keeps the rows where they are.
func (p *Plan) put(ctx context.Context, tx pgx.Tx, batch []replayed, slot string, sinks []string, after int64) (restored int, gone, made []string, err error) {
	var ids, keys, types []string
	var hashes []int32
	for i := range batch {
		ids = append(ids, batch[i].id.String())
	}
	if _, err := tx.Exec(ctx, `SELECT pg_catalog.pg_advisory_xact_lock($1::bigint)`, relay.ReplayLock); err != nil {
		return 0, nil, nil, err
	}
	there, err := present(ctx, tx, ids)
	if err != nil {
		return 0, nil, nil, err
	}
	// Only what is in the archive and nowhere else is copied: a role without INSERT on saga_outbox
	// can replay the rest.
	if !p.NoArchive && len(there) < len(ids) {
		var archived bool
		if err := tx.QueryRow(ctx, archivedSQL, ids).Scan(&archived); err != nil {
			return 0, nil, nil, fmt.Errorf("look into saga_outbox_archive: %w", err)
		}
		if archived {
			tag, err := tx.Exec(ctx, restoreSQL, ids)
			if err != nil {
				return 0, nil, nil, restoring(err, tx.Conn().Config().User)
			}
			restored = int(tag.RowsAffected())
			if there, err = present(ctx, tx, ids); err != nil {
				return 0, nil, nil, err
			}
		}
	}
	kept := ids[:0:0]
	for i := range batch {
		if !there[ids[i]] {
			gone = append(gone, ids[i])
			continue
		}
		kept, keys, types = append(kept, ids[i]), append(keys, batch[i].key), append(types, batch[i].eventType)
		hashes = append(hashes, int32(relay.KeyHash(batch[i].key))) //nolint:gosec // the same 32 bits
	}
	rows, err := tx.Query(ctx, replaySQL, kept, keys, hashes, types, slot, after, sinks)
	if err != nil {
		return 0, nil, nil, err
	}
	made, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return restored, gone, made, err
}

// restoring adds to an error what the copying out of the archive lacks: a right that nothing else
// needs.
func restoring(err error, role string) error {
	err = fmt.Errorf("copy rows back from saga_outbox_archive: %w", err)
	return sessions.LacksRight(err, "GRANT INSERT ON saga_outbox TO "+pgx.Identifier{role}.Sanitize()+";")
}

// present locks the events' rows and returns which there are.
func present(ctx context.Context, tx pgx.Tx, ids []string) (map[string]bool, error) {
	rows, err := tx.Query(ctx, thereSQL, ids)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	there := make(map[string]bool, len(list))
	for _, id := range list {
		there[id] = true
	}
	return there, nil
}
