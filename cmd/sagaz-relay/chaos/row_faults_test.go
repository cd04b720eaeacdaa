package chaos

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// slotFaults happen to what the stream hangs on.
func slotFaults() []*fault {
	return []*fault{
		{name: "drop-slot", weight: 3, most: time.Millisecond, do: func(r *round, s step) error { return r.dropSlot(s) }},
		{name: "drop-slot-down", weight: 2, most: 2 * time.Second, stops: true, do: func(r *round, s step) error { return r.whileDown(s, func() error { return r.dropSlot(s) }) }},
		{name: "lose-slot", weight: 2, most: time.Second, stops: true, do: func(r *round, s step) error { return r.whileDown(s, r.loseSlot) }},
		{name: "drop-publication", weight: 2, most: time.Millisecond, do: func(r *round, s step) error {
			return r.sql(`DROP PUBLICATION IF EXISTS ` + r.shardOf(s).Publication)
		}},
		{name: "wal", weight: 3, least: time.Second, most: 5 * time.Second, do: (*round).writeWAL},
	}
}

// writeWAL is other programs that write much: what the slot holds back is soon more than the
// relay's budget, if a sink is down.
func (r *round) writeWAL(s step) error {
	for end := time.Now().Add(s.hold); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := r.sql(`SELECT pg_logical_emit_message(false, 'chaos', repeat('x', 1000000))`); err != nil {
			return err
		}
	}
	return nil
}

// dropSlot drops the slot, from under its reader if need be.
func (r *round) dropSlot(s step) error {
	return r.sql(fmt.Sprintf(`DO $$ BEGIN
		FOR i IN 1..500 LOOP
			BEGIN
				PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '%[1]s' AND active_pid IS NOT NULL;
				PERFORM pg_drop_replication_slot('%[1]s');
				EXIT;
			EXCEPTION
				WHEN object_in_use THEN PERFORM pg_sleep(0.01);
				WHEN undefined_object THEN EXIT;
			END;
		END LOOP;
	END $$`, r.slotOf(s)))
}

// loseSlot makes the server give the slot up: it holds back more WAL than it may.
func (r *round) loseSlot() error {
	r.testbed.pgMu.Lock()
	defer r.testbed.pgMu.Unlock()
	err := errors.Join(r.sql(`ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`), r.sql(`SELECT pg_reload_conf()`))
	for range 4 {
		err = errors.Join(err, r.sql(`SELECT pg_logical_emit_message(false, 'chaos', 'x'), pg_switch_wal()`))
	}
	return errors.Join(err, r.sql(`CHECKPOINT`), r.sql(`ALTER SYSTEM RESET max_slot_wal_keep_size`), r.sql(`SELECT pg_reload_conf()`))
}

// whileDown stops all relays, does something, and starts them again.
func (r *round) whileDown(s step, do func() error) error {
	var errs []error
	for _, seat := range r.seats {
		seat.mu.Lock()
		defer seat.mu.Unlock()
		errs = append(errs, seat.stop())
	}
	errs = append(errs, do())
	time.Sleep(s.hold)
	for _, seat := range r.seats {
		errs = append(errs, seat.start())
	}
	return errors.Join(errs...)
}

// rowFaults are rows that are odd, and what people and other programs do to rows.
func rowFaults() []*fault {
	return []*fault{
		{name: "unroutable", weight: 3, most: 4 * time.Second, brokers: true, do: (*round).unroutable},
		{name: "too-large", weight: 3, most: 4 * time.Second, brokers: true, do: (*round).tooLarge},
		{name: "unknown-topic", weight: 3, most: 4 * time.Second, brokers: true, do: (*round).unknownTopic},
		{name: "replay", weight: 2, most: time.Millisecond, do: (*round).replay},
		{name: "claimed", weight: 2, most: time.Millisecond, do: (*round).claimed},
		{name: "lock", weight: 2, least: time.Second, most: 4 * time.Second, locks: true, do: (*round).lockRows},
	}
}

// unroutable commits an event that no queue is bound for; the binding comes later.
func (r *round) unroutable(s step) error {
	eventType := "Unbound-" + rand.Text()[:8]
	return r.poisoned(s, "rabbitmq", row{eventType: eventType}, func() error { return r.testbed.bind(r.slot, eventType) })
}

// tooLarge commits an event that is larger than its topic takes, until the topic is set to take
// more.
func (r *round) tooLarge(s step) error {
	return r.poisoned(s, "kafka", row{pad: maxMessage + 20_000}, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var errs []error
		for _, topic := range r.topics {
			errs = append(errs, r.testbed.allowLarger(ctx, topic))
		}
		return errors.Join(errs...)
	})
}

// unknownTopic commits an event for a topic that does not exist; it comes into being later.
func (r *round) unknownTopic(s step) error {
	topic := "absent-" + strings.ToLower(rand.Text()[:8])
	return r.poisoned(s, "kafka", row{topic: topic}, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err := r.testbed.createTopic(ctx, topic)
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.extra = append(r.extra, topic)
		}
		return err
	})
}

// poisoned commits an event that a sink refuses, with others of its key around it in the same
// transaction. What is wrong is fixed later, if that is planned.
func (r *round) poisoned(s step, sink string, bad row, fix func() error) error {
	key := r.load.keys[s.pick%uint64(len(r.load.keys))]
	bad.key = key
	rows := []row{{key: key}, bad, {key: key}, {key: key}}
	conn, ids, err := r.load.commit(nil, false, rows)
	closeQuietly(conn)
	if err != nil {
		return err
	}
	r.mu.Lock()
	if len(ids) > 0 {
		r.poison[sink][ids[1]] = true
		if bad.topic != "" || r.plan.letters == lettersRetried && r.plan.env["RELAY_DEAD_LETTER"] != "hold" {
			r.apart[sink][ids[1]] = true
		}
	}
	r.mu.Unlock()
	if r.plan.letters == lettersDead || r.plan.letters == lettersDiscarded {
		return nil
	}
	time.Sleep(s.hold)
	if err := fix(); err != nil { // the broker may be away
		r.mu.Lock()
		defer r.mu.Unlock()
		r.fixes = append(r.fixes, fix)
	}
	return nil
}

// replay sets rows that were sent back to pending, as a person does who wants them delivered again.
func (r *round) replay(s step) error {
	chosen, err := query[[16]byte](r, `SELECT event_id FROM saga_outbox WHERE status = 'sent' ORDER BY random() LIMIT 5`)
	if err != nil {
		return err
	}
	r.mu.Lock()
	for _, id := range chosen {
		r.replayed[relay.UUID(id)] = true
	}
	r.mu.Unlock()
	return r.sql(`UPDATE saga_outbox SET status = 'pending' WHERE event_id = ANY($1) AND status = 'sent'`, chosen)
}

// claimed commits rows that a worker of the library claimed long ago and never marked.
func (r *round) claimed(s step) error {
	k := &key{name: "claimed-" + rand.Text()[:8], topic: r.topics[s.pick%2], skew: -time.Minute}
	conn, _, err := r.load.commit(nil, false, []row{{key: k, status: "claimed"}, {key: k, status: "claimed"}})
	closeQuietly(conn)
	return err
}

// lockRows is a session that locks rows which are about to be marked, and sits on them.
func (r *round) lockRows(s step) error {
	conn, err := r.load.connect()
	if err != nil {
		return err
	}
	defer closeQuietly(conn)
	end := time.Now().Add(s.hold)
	ctx, cancel := context.WithDeadline(context.Background(), end.Add(5*time.Second))
	defer cancel()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil // the database is away, and so is the fault
	}
	rnd := mrand.New(mrand.NewPCG(s.pick, 0))
	for time.Now().Before(end) {
		if _, err := tx.Exec(ctx, `SELECT FROM saga_outbox WHERE status = 'pending' ORDER BY created_at DESC LIMIT $1 FOR UPDATE SKIP LOCKED`, 1+rnd.IntN(3)); err != nil {
			return nil // the same
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = tx.Rollback(ctx) // closing the connection does it, too
	return nil
}
