package main

import (
	"context"
	_ "embed"
	"fmt"
	"os/exec"
	"strings"
)

// watermillContestant is Watermill's forwarder, a Go library's outbox. It has a table of its own,
// whose rows have the same payload in an envelope; it polls, and publishes one message after the
// other.
func watermillContestant() *contestant {
	return &contestant{
		name: "watermill", program: "watermill", broker: "kafka", does: "an offset a batch", header: "_watermill_message_uuid", slow: true, maxRate: 1000,
		prepare: func(ctx context.Context, t *site) error {
			// As its SchemaAdapter makes it.
			return t.exec(ctx, `CREATE TABLE "watermill_`+t.name+`" ("offset" bigserial, uuid varchar(36) NOT NULL,
				created_at timestamp NOT NULL DEFAULT current_timestamp, payload json, metadata json, transaction_id xid8 NOT NULL,
				PRIMARY KEY (transaction_id, "offset"))`)
		},
		rows: watermillRows,
		command: func(t *site) (*exec.Cmd, error) {
			cmd := exec.Command(t.forwarder, "-brokers", t.kafka.Plaintext, "-topic", t.name)
			cmd.Env = environment("DATABASE_URL=" + t.dsn)
			return cmd, nil
		},
		marked: func(ctx context.Context, t *site) (n int, err error) {
			err = t.conn.QueryRow(ctx, `SELECT coalesce(max(offset_acked), 0) FROM "watermill_offsets_`+t.name+`"`).Scan(&n)
			return n, err
		},
	}
}

// watermillRows is insertSQL for its table: the forwarder unwraps what is in base64.
func watermillRows(topic, n string, rowBytes int, from string) string {
	return fmt.Sprintf(`INSERT INTO "watermill_%[1]s" (uuid, payload, metadata, transaction_id)
		SELECT gen_random_uuid()::text, jsonb_build_object('destination_topic', '%[1]s', 'uuid', gen_random_uuid(),
		'payload', translate(encode(convert_to(%[2]s::text, 'UTF8'), 'base64'), E'\n', ''),
		'metadata', jsonb_build_object('aggregate_id', 'order-' || i %% 10000, 'correlation_id', 'c0ffee')),
		'{}', pg_current_xact_id()
		FROM (SELECT %[3]s AS i%[4]s) AS numbers`, topic, payloadSQL(rowBytes), n, from)
}

//go:embed go.mod
var goMod string

// watermillVersions are those of its modules.
func watermillVersions() string {
	var found []string
	for line := range strings.Lines(goMod) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "github.com/ThreeDotsLabs/"); ok {
			found = append(found, strings.TrimSuffix(name, " // indirect"))
		}
	}
	return strings.Join(found, ", ")
}
