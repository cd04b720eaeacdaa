package repair

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// Filter chooses letters. An empty field does not choose.
type Filter struct {
	State     State
	Sink      string
	Reason    string
	EventType string
	Key       string
	EventIDs  []relay.UUID
	SagaID    string
	// Since it went to the ledger; for a row without an entry, since created_at.
	OlderThan time.Duration

	only string // a condition on letters more: ToRetry, ToDiscard
}

// ToRetry narrows a filter to what Retry changes. It is an error to ask for held ones.
func ToRetry(f Filter) (Filter, error) {
	if f.State == StateHeld {
		return f, ErrHeld
	}
	f.only = "(discarded OR state = 'dead' OR state = 'unmarked' AND next_attempt_at > now() OR state = 'retry' AND (sink = '" + NoSink + "' OR next_attempt_at > now()))"
	return f, nil
}

// ToDiscard narrows a filter to what Discard changes. An entry about a row's mark is not among
// them: without it, the event would be delivered again.
func ToDiscard(f Filter) Filter {
	f.only = "NOT discarded AND state <> 'unmarked'"
	return f
}

// Narrow reports whether the filter leaves anything out, apart from the state.
func (f *Filter) Narrow() bool {
	return f.Sink != "" || f.Reason != "" || f.EventType != "" || f.Key != "" || len(f.EventIDs) > 0 || f.SagaID != "" || f.OlderThan > 0
}

// State is the state of a letter: a relay.State, discarded, unmarked, or all of them.
type State string

// States to filter by.
const (
	StateDead      = State(relay.StateDead)
	StateHeld      = State(relay.StateHeld)
	StateRetry     = State(relay.StateRetry)
	StateDiscarded = State("discarded") // given up by a person, whatever it was before
	StateUnmarked  = State("unmarked")  // delivered, and the row does not take its mark
	StateAll       = State("all")
)

// States are those that a Filter takes.
func States() []State {
	return []State{StateDead, StateRetry, StateHeld, StateUnmarked, StateDiscarded, StateAll}
}

// NoSink is the sink of a row that has no entry in the ledger.
const NoSink = "-"

// Letter is an event that a sink did not get: a ledger entry with its row, or a row that failed
// without one.
type Letter struct {
	EventID   string `json:"event_id"`
	Sink      string `json:"sink"` // NoSink for a row without an entry
	Slot      string `json:"slot,omitempty"`
	State     State  `json:"state"`
	Reason    string `json:"reason,omitempty"`
	Attempts  int    `json:"attempts"`
	Key       string `json:"key"`
	EventType string `json:"event_type"`
	SagaID    string `json:"saga_id"`
	RowStatus string `json:"row_status"` // "gone" when the row is not there any more
	// It went to the ledger; without an entry, created_at.
	Since         time.Time  `json:"since"`
	NextAttemptAt *time.Time `json:"next_attempt_at,omitempty"`
	LastError     string     `json:"last_error,omitempty"`
	Detached      bool       `json:"detached"` // later events of its key are not held behind it
	Discarded     bool       `json:"discarded"`
	ReplayedAt    *time.Time `json:"replayed_at,omitempty"`
	Position      int64      `json:"position,omitempty"`
}

// givenUp is how last_error begins in a row without an entry that a person has discarded. The row
// has no other column for that, and stays a dead letter for everybody who reads the table.
const givenUp = "discarded: "

// letters is every letter there is; find and the statements that change them choose from it. The
// table's own columns may have other types than text.
const letters = `SELECT d.event_id, d.sink, d.slot, CASE d.sink WHEN '` + relay.MarkSink + `' THEN 'unmarked' ELSE d.state END AS state, d.reason, d.attempts, d.partition_key, d.event_type, o.saga_id::text, coalesce(o.status, 'gone') AS row_status,
		d.parked_at AS since, d.next_attempt_at, d.last_error, d.detached, d.discarded, d.replayed_at, d.position
	FROM saga_outbox_delivery d LEFT JOIN saga_outbox o ON o.event_id = d.event_id
	UNION ALL
	SELECT o.event_id, '-', '', CASE o.status WHEN 'dead_letter' THEN 'dead' ELSE 'retry' END, NULL, coalesce(o.retry_count, 0), ` + relay.RowKey + `, o.event_type::text, o.saga_id::text, o.status,
		least(greatest(o.created_at, '0001-01-01'), now()), NULL, o.last_error, true, coalesce(o.last_error, '') LIKE '` + givenUp + `%', NULL, 0
	FROM saga_outbox o WHERE o.status IN ('dead_letter', 'failed') AND NOT EXISTS (SELECT FROM saga_outbox_delivery d WHERE d.event_id = o.event_id OFFSET 0)`

// where renders the filter as a condition on letters, adding its arguments to args.
func (f *Filter) where(args *[]any) string {
	conditions := []string{"true"}
	add := func(condition string, arg any) {
		*args = append(*args, arg)
		conditions = append(conditions, fmt.Sprintf(condition, len(*args)))
	}
	switch f.State {
	case StateDead, StateHeld, StateRetry, StateUnmarked:
		conditions = append(conditions, "NOT discarded")
		add("state = $%d", string(f.State))
	case StateDiscarded:
		conditions = append(conditions, "discarded")
	}
	if f.only != "" {
		conditions = append(conditions, f.only)
	}
	for _, c := range []struct{ condition, value string }{
		{"sink = $%d", f.Sink}, {"reason = $%d", f.Reason}, {"event_type = $%d", f.EventType}, {"partition_key = $%d", f.Key}, {"saga_id = $%d", f.SagaID},
	} {
		if c.value != "" {
			add(c.condition, c.value)
		}
	}
	if len(f.EventIDs) > 0 {
		add("event_id = ANY($%d::uuid[])", texts(f.EventIDs))
	}
	if f.OlderThan > 0 {
		add("since < now() - $%d * interval '1 second'", f.OlderThan.Seconds())
	}
	return strings.Join(conditions, " AND ")
}

func texts(ids []relay.UUID) []string {
	all := make([]string, len(ids))
	for i := range ids {
		all[i] = ids[i].String()
	}
	return all
}

// Find returns the letters that the filter chooses, the oldest first, at most limit (0: all), and
// how many there are. For rows without an entry it may have to look at the whole table.
func Find(ctx context.Context, conn *pgx.Conn, f Filter, limit int) (found []Letter, total int, err error) {
	var args []any
	where := f.where(&args)
	sql := `SELECT event_id::text, sink, slot, CASE WHEN discarded THEN 'discarded' ELSE state END, coalesce(reason, ''), attempts, partition_key, event_type, coalesce(saga_id, ''),
		row_status, since, next_attempt_at, coalesce(last_error, ''), detached, discarded, replayed_at, position, count(*) OVER ()
		FROM (` + letters + `) l WHERE ` + where + ` ORDER BY since, position, event_id, sink`
	if limit > 0 {
		args = append(args, limit)
		sql += fmt.Sprintf(" LIMIT $%d", len(args))
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, 0, fmt.Errorf("read the ledger: %w", err)
	}
	var l Letter
	_, err = pgx.ForEachRow(rows, []any{
		&l.EventID, &l.Sink, &l.Slot, &l.State, &l.Reason, &l.Attempts, &l.Key, &l.EventType, &l.SagaID,
		&l.RowStatus, &l.Since, &l.NextAttemptAt, &l.LastError, &l.Detached, &l.Discarded, &l.ReplayedAt, &l.Position, &total,
	}, func() error {
		found = append(found, l)
		l.NextAttemptAt, l.ReplayedAt = nil, nil
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read the ledger: %w", err)
	}
	return found, total, nil
}
