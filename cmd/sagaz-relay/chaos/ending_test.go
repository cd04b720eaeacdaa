package chaos

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/verify"
)

// finish waits until every row has its outcome, and the ledger holds nothing but dead letters. It
// gives up when for as long as patience nothing more has got there: how many do in a while depends
// on the machine.
func (r *round) finish() bool {
	unfinished := `SELECT count(*) || ' rows ' || status FROM saga_outbox WHERE status NOT IN ('sent', 'dead_letter') GROUP BY status
		UNION ALL SELECT count(*) || ' entries ' || state || ' of ' || sink || coalesce(' for ' || reason, '') FROM saga_outbox_delivery WHERE state <> 'dead' GROUP BY state, sink, reason`
	if r.byHand() {
		unfinished = strings.ReplaceAll(unfinished, `state <> 'dead'`, `true`)
	}
	var left []string
	asked, least := time.Now(), math.MaxInt
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var err error
		if left, err = query[string](r, unfinished); err != nil {
			r.errorf("look at the table: %v", err)
			return false
		}
		if len(left) == 0 {
			return true
		}
		if n := total(left); n < least {
			least, deadline = n, time.Now().Add(patience)
		}
		if r.byHand() && time.Since(asked) > time.Second {
			asked = time.Now()
			if err := r.deadLetters(); err != nil {
				r.errorf("%v", err)
			}
		}
	}
	some, _ := query[string](r, `SELECT concat_ws(' ', o.event_id, o.aggregate_id, o.aggregate_type, o.event_type, o.status, o.retry_count, o.worker_id, o.last_error,
		'| ledger:', d.sink, d.state, d.reason, d.attempts, d.position, d.last_error) FROM saga_outbox o LEFT JOIN saga_outbox_delivery d USING (event_id)
		WHERE o.status NOT IN ('sent', 'dead_letter') OR d.state <> 'dead' ORDER BY d.position, o.created_at LIMIT 5`) // for people
	state, _ := query[string](r, `SELECT 'relay state: ' || r::text FROM saga_outbox_relay r UNION ALL SELECT 'slot: ' || s::text FROM pg_replication_slots s WHERE database = current_database()`)
	r.errorf("not finished, and no nearer to it for %s: %s; the first of them:\n%s\n%s", patience, strings.Join(left, ", "), strings.Join(some, "\n"), strings.Join(state, "\n"))
	return false
}

// total adds up the counts that the lines begin with.
func total(lines []string) (sum int) {
	for _, l := range lines {
		count, _, _ := strings.Cut(l, " ")
		n, _ := strconv.Atoi(count)
		sum += n
	}
	return sum
}

// byHand reports whether a person deals with dead letters.
func (r *round) byHand() bool {
	return r.plan.letters == lettersRetried || r.plan.letters == lettersDiscarded
}

// deadLetters does with all dead letters what is planned, as a person does it.
func (r *round) deadLetters() error {
	what := "retry"
	if r.plan.letters == lettersDiscarded {
		what = "discard"
	}
	p, err := r.launch("dead-letter", settings{"DATABASE_URL": r.plan.env["DATABASE_URL"], "RELAY_SLOT": r.slot}, "dead-letter", what, "--all")
	if err != nil {
		return err
	}
	p.expected.Store(true)
	<-p.Done()
	if line := p.lastLine(); p.Err() != nil && !strings.Contains(line, "run it again") {
		return fmt.Errorf("dead-letter %s: %w: %s", what, p.Err(), line)
	}
	return nil
}

// compare gathers what is known of the round, and judges.
func (r *round) compare() *comparison {
	e := &evidence{check: r.load.check, got: make(map[string][]verify.Event), dead: make(map[string]ids), poison: r.poison, apart: r.apart, replayed: r.replayed, excuses: r.excuses()}
	for f := range r.done {
		e.locked = e.locked || f.locks
	}
	for _, sink := range r.plan.sinks {
		var err error
		if e.got[sink], err = r.arrived(sink); err != nil {
			r.errorf("read back from %s: %v", sink, err)
		}
		if e.dead[sink], err = r.deadAt(sink); err != nil {
			r.errorf("read the dead letters of %s: %v", sink, err)
		}
	}
	v := e.judge()
	r.rows(e, v)
	if len(v.problems) > 0 {
		r.record(e)
	}
	return v
}

// record writes down, for whoever looks into a failure, what each sink holds.
func (r *round) record(e *evidence) {
	for sink, got := range e.got {
		var b strings.Builder
		seen := make(ids)
		for _, event := range got {
			fmt.Fprintf(&b, "%s %s", event.ID, event.Key)
			if seen[event.ID] {
				b.WriteString(" again")
			}
			b.WriteString("\n")
			seen[event.ID] = true
		}
		if err := os.WriteFile(filepath.Join(r.dir, "arrived-"+sink+".txt"), []byte(b.String()), 0o644); err != nil {
			r.errorf("%v", err)
		}
	}
}

// arrived is what a sink holds.
func (r *round) arrived(sink string) (all []verify.Event, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	switch r.plan.kind(sink) {
	case "nats":
		err = retry(func() (err error) { all, err = r.inNATS(ctx); return err })
		return all, err
	case "kafka":
		return r.testbed.inKafka(ctx, slices.Concat(r.topics, r.extra))
	case "rabbitmq":
		err = retry(func() (err error) { all, err = r.testbed.inRabbit(ctx, r.slot); return err })
		return all, err
	}
	return inFile(r.filePath())
}

// deadAt are the dead letters of a sink. Of those that were given up the ledger has nothing any
// more, only the row has; which sink they were given up for is to be seen from what was wrong with
// them.
func (r *round) deadAt(sink string) (ids, error) {
	dead := make(ids)
	list, err := query[[16]byte](r, `SELECT event_id FROM saga_outbox_delivery WHERE sink = $1 AND state = 'dead'`, sink)
	if r.plan.letters == lettersDiscarded && err == nil {
		list, err = query[[16]byte](r, `SELECT event_id FROM saga_outbox WHERE status = 'dead_letter'`)
		list = slices.DeleteFunc(list, func(id [16]byte) bool { return !r.poison[sink][relay.UUID(id)] })
	}
	for _, id := range list {
		dead[relay.UUID(id)] = true
	}
	return dead, err
}

// rows compares the table with what was committed: each event has its row with its outcome, or
// where RELAY_MARK puts it.
func (r *round) rows(e *evidence, v *comparison) {
	counts, err := query[int](r, `SELECT unnest(ARRAY[(SELECT count(*) FROM saga_outbox), (SELECT count(*) FROM saga_outbox WHERE status = 'dead_letter'),
		(SELECT count(*) FROM saga_outbox_archive)])::int`)
	dead := make(ids)
	for _, set := range e.dead {
		for id := range set {
			dead[id] = true
		}
	}
	if err != nil {
		r.errorf("count the rows: %v", err)
		return
	}
	left, archived := v.events, 0
	switch r.plan.env["RELAY_MARK"] {
	case "delete":
		left = len(dead)
	case "archive":
		left, archived = len(dead), v.events-len(dead)
	}
	switch {
	case counts[0] != left || counts[2] != archived:
		v.problems = append(v.problems, fmt.Sprintf("%d rows in the table and %d in the archive, want %d and %d", counts[0], counts[2], left, archived))
	case counts[1] != len(dead):
		v.problems = append(v.problems, fmt.Sprintf("%d rows are dead_letter, the ledger has %d", counts[1], len(dead)))
	}
}
