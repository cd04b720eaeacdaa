package captured_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/cdc/pgoutput"
	"github.com/sagaz-relay/relay/internal/testbed/captured"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

var update = flag.Bool("update", false, "write testdata again")

func TestMain(m *testing.M) { os.Exit(pgtest.Closing(m).Run()) }

// A server of today sends what was captured.
func TestCaptured(t *testing.T) {
	for _, shape := range captured.Shapes {
		t.Run(shape.Name, func(t *testing.T) {
			messages := capture(t, shape)
			if *update {
				write(t, "testdata/"+shape.Name+".gz", messages)
				if err := shape.Check(decode(t, messages)); err != nil {
					t.Error(err)
				}
				return
			}
			want, err := shape.Events()
			if err != nil {
				t.Fatal(err)
			}
			got := decode(t, messages)
			if err := shape.Check(got); err != nil {
				t.Fatal(err)
			}
			for i := range got {
				g, w := got[i], want[i]
				g.CommitLSN, g.CommittedAt, g.XID = w.CommitLSN, w.CommittedAt, w.XID
				if w.CommitEnd = 0; g != w {
					t.Fatalf("event %d:\n got %+v\nwant %+v", i, g, w)
				}
			}
		})
	}
}

// capture inserts the rows of a shape and reads them from a slot as the relay does.
func capture(t *testing.T, shape captured.Shape) (messages [][]byte) {
	db := pgtest.New(t, pgtest.Migrated())
	ctx := t.Context()
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := db.Pool.Exec(ctx, sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	columns := ""
	for i, name := range pgoutput.Columns {
		if i > 0 {
			columns += ", "
		}
		columns += name
	}
	list := ` (` + columns + `)`
	if db.Version < "15" {
		list = ""
	}
	exec(`CREATE PUBLICATION captured FOR TABLE saga_outbox` + list + ` WITH (publish = 'insert')`)
	slot := "captured_" + shape.Name[:4]
	exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	for i := 0; i < shape.Rows; {
		tx, err := db.Pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range shape.PerTx {
			if _, err := tx.Exec(ctx, shape.Statement(), strconv.Itoa(i)); err != nil {
				t.Fatal(err)
			}
			i++
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := pgconn.ParseConfig(db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = conn.Close(ctx)
		exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active`, slot)
	}()
	args := []string{"proto_version '1'", "publication_names 'captured'"}
	if !shape.Text {
		args = append(args, "binary 'true'")
	}
	if err := pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{Mode: pglogrepl.LogicalReplication, PluginArgs: args}); err != nil {
		t.Fatal(err)
	}
	_ = conn.Conn().SetReadDeadline(time.Now().Add(2 * time.Minute))
	for commits := 0; commits < shape.Rows/shape.PerTx; {
		msg, err := conn.Frontend().Receive()
		if err != nil {
			t.Fatal(err)
		}
		data, ok := msg.(*pgproto3.CopyData)
		if !ok || data.Data[0] != pglogrepl.XLogDataByteID {
			continue
		}
		messages = append(messages, bytes.Clone(data.Data))
		if data.Data[captured.XLogData] == 'C' {
			commits++
		}
	}
	return messages
}

func decode(t *testing.T, messages [][]byte) (events []relay.Event) {
	t.Helper()
	table, err := captured.Table(messages)
	if err != nil {
		t.Fatal(err)
	}
	d := pgoutput.NewDecoder(table)
	for _, m := range messages {
		kind, err := d.Decode(m[captured.XLogData:])
		if err != nil {
			t.Fatal(err)
		}
		if kind == pgoutput.Insert {
			events = append(events, d.Event)
		}
	}
	return events
}

func write(t *testing.T, name string, messages [][]byte) {
	t.Helper()
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	var errs []error
	for _, m := range messages {
		_, lengthErr := z.Write(binary.BigEndian.AppendUint32(nil, uint32(len(m))))
		_, err := z.Write(m)
		errs = append(errs, lengthErr, err)
	}
	errs = append(errs, z.Close())
	if err := errors.Join(append(errs, os.WriteFile(name, packed.Bytes(), 0o644))...); err != nil {
		t.Fatal(err)
	}
}
