package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// relayContestant is this relay. All settings but those of the mark and the slots are defaults.
func relayContestant(name, broker string, slots int, settings ...string) *contestant {
	return &contestant{
		name: name, program: "relay", broker: broker, does: "marks rows in batches", header: "event_id",
		prepare: func(ctx context.Context, t *site) error { return t.prepareRelay(ctx, slots) },
		command: func(t *site) (*exec.Cmd, error) {
			cmd := exec.Command(t.relay, "run")
			cmd.Env = environment(append(settings, "DATABASE_URL="+t.dsn, "RELAY_SLOT="+t.name, "RELAY_PUBLICATION="+publication,
				"RELAY_SHARDS="+strconv.Itoa(slots), "RELAY_MODE=cdc", "WORKER_ID=compare", "BROKER_TYPE="+broker, "LOG_LEVEL=WARNING",
				"RELAY_HTTP_ADDR=127.0.0.1:"+strconv.Itoa(t.port))...)
			if broker == "kafka" {
				cmd.Env = append(cmd.Env, "KAFKA_BOOTSTRAP_SERVERS="+t.kafka.Plaintext)
			} else {
				cmd.Env = append(cmd.Env, "RABBITMQ_URL="+t.rabbit.URL, "RABBITMQ_EXCHANGE="+t.name)
			}
			return cmd, nil
		},
		marked: relayMarks,
	}
}

// prepareRelay makes publications and slots as a relay's first start would, and notes that the
// slots bring everything from here on: the backlog is to come from them, and not from the table.
func (t *site) prepareRelay(ctx context.Context, slots int) error {
	set := relay.Set{Slot: t.name, Publication: publication, Shards: slots}
	if slots > 1 {
		if _, err := store.MakeSet(ctx, t.conn, set); err != nil {
			return err
		}
	}
	for _, shard := range set.All() {
		if _, err := cdc.EnsurePublication(ctx, t.conn, shard); err != nil {
			return err
		}
		if err := t.makeSlot(ctx, shard.Slot); err != nil {
			return err
		}
		err := t.exec(ctx, `INSERT INTO saga_outbox_relay (slot, epoch, owner, sweep_owed, released_at, confirmed_lsn, shard, shards)
			SELECT slot_name, 0, '', false, now(), confirmed_flush_lsn, $2, $3 FROM pg_replication_slots WHERE slot_name = $1::text`, shard.Slot, shard.Index, set.Shards)
		if err != nil {
			return fmt.Errorf("note slot %s: %w", shard.Slot, err)
		}
	}
	return nil
}

// relayMarks asks the relay.
func relayMarks(ctx context.Context, t *site) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+strconv.Itoa(t.port)+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	marked := 0.0
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "outbox_marked_events_total{"); ok {
			_, text, _ := strings.Cut(rest, "} ")
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return 0, fmt.Errorf("outbox_marked_events_total: %w", err)
			}
			marked += n
		}
	}
	return int(marked), lines.Err()
}
