package edges

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// letters are what odd keys are made of.
var letters = map[string][]string{
	"ASCII":   {" ", "\t", "\n", "\x01", "\x7f", "'", `"`, `\`, "%", "_", "-", ".", "/", ":", "0", "7", "9", "a", "B", "z", "NULL", "of", "key"},
	"LATIN1":  {"é", "É", "ß", "ÿ", "Å", "\u00a0", "\u00ad", "ñ", "Ø"},
	"Unicode": {"é", "e\u0301", "É", "E\u0301", "Å", "A\u030a", "\u212b", "가", "\u1100\u1161", "ﬁ", "ß", "ẞ", "İ", "ı", "ς", "Σ", "العربية", "\u200b", "\u202e", "日本", "🎉", "👩‍👩‍👧", "\U0010ffff", "\ufeff"},
	"bytes":   {"\xff", "\xc3", "\x80", "\xe9", "\xed\xa0\x80"},
}

// oddKey is a key of at most 255 characters, and at most so many bytes.
func oddKey(rng *rand.Rand, alphabet []string, most int) string {
	switch rng.IntN(12) {
	case 0:
		return ""
	case 1:
		return strings.Repeat(" ", rng.IntN(20))
	case 2:
		return fmt.Sprint(rng.Int64() - 1<<62)
	case 3:
		return fmt.Sprintf("order-%d", rng.IntN(100_000))
	}
	letters := rng.IntN(12)
	if rng.IntN(8) == 0 {
		letters = 255
	}
	var key strings.Builder
	chars := 0
	for range letters {
		next := alphabet[rng.IntN(len(alphabet))]
		if n := len([]rune(next)); chars+n > 255 || key.Len()+len(next) > most {
			break
		} else {
			chars += n
		}
		key.WriteString(next)
	}
	return key.String()
}

// TestMillionKeys has a million odd keys in databases of several encodings. Each belongs to exactly
// one shard of sets of any size, and the publication's filter, the stream, the condition of sweeps
// and that of the ledger agree on which.
func TestMillionKeys(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, encoding, column string
		letters                []string
		most                   int // bytes of a key
		rows                   int
	}{
		{"UTF8", "", `varchar(255)`, append(letters["ASCII"], letters["Unicode"]...), 1 << 10, 500_000},
		{"ICU collation", "", `text COLLATE "de-x-icu"`, append(letters["ASCII"], letters["Unicode"]...), 1 << 10, 100_000},
		{"LATIN1", "LATIN1", `varchar(255)`, append(letters["ASCII"], letters["LATIN1"]...), 1 << 10, 200_000},
		{"SQL_ASCII", "SQL_ASCII", `varchar(255)`, append(append(letters["ASCII"], letters["Unicode"]...), letters["bytes"]...), 255, 200_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			opts := []pgtest.Option{pgtest.Migrated()}
			if c.encoding != "" {
				opts = append(opts, pgtest.Encoding(c.encoding))
			}
			db := pgtest.NewVersion(t, pgtest.Newest, opts...)
			conn := connect(t, db)
			exec(t, conn, `DROP INDEX idx_outbox_pending, idx_outbox_claimed_at, idx_outbox_saga_id, saga_outbox_status`)
			exec(t, conn, `ALTER TABLE saga_outbox ALTER COLUMN aggregate_id TYPE `+c.column)
			if c.encoding == "SQL_ASCII" { // bytes as they are, as the relay's sessions have them
				exec(t, conn, `SET client_encoding = 'SQL_ASCII'`)
			}
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Minute)
			defer stop()
			source, err := cdc.New(func() cdc.Config { c := cdc.DefaultConfig(); c.DatabaseURL = db.DSN; return c }(), hclog.NewNullLogger())
			if err != nil {
				t.Fatal(err)
			}
			set := relay.Set{Slot: "odd_" + db.Name[len(db.Name)-8:], Publication: "sagaz_outbox", Shards: 4}
			for _, shard := range set.All() {
				if _, err := source.Create(ctx, shard); err != nil {
					t.Fatal(err)
				}
			}
			rng := rand.New(rand.NewPCG(1, uint64(c.rows))) //nolint:gosec // the same keys each time
			for at := 0; at < c.rows; at += 50_000 {
				fill(t, ctx, conn, at+1, min(50_000, c.rows-at), func() string { return oddKey(rng, c.letters, c.most) })
			}
			partitions(t, ctx, conn, db, set, c.rows)
			streamedKeys(t, ctx, conn, source, set, c.rows)
		})
	}
	// No filter takes such a column. Sweeps and ledger still agree: two keys that are equal to the
	// collation are two keys.
	t.Run("nondeterministic collation", func(t *testing.T) {
		t.Parallel()
		db := pgtest.NewVersion(t, pgtest.Newest, pgtest.Migrated())
		conn := connect(t, db)
		exec(t, conn, `CREATE COLLATION made (provider = icu, locale = 'und-u-ks-level1', deterministic = false)`)
		exec(t, conn, `ALTER TABLE saga_outbox ALTER COLUMN aggregate_id TYPE text COLLATE made`)
		rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same keys each time
		fill(t, t.Context(), conn, 1, 20_000, func() string { return oddKey(rng, letters["Unicode"], 1<<10) })
		for _, shards := range []string{"2", "3", "4", "7", "64"} {
			sameShard(t, t.Context(), conn, `SELECT count(*) FROM saga_outbox o CROSS JOIN LATERAL (SELECT aggregate_id::text COLLATE "default" AS partition_key OFFSET 0) d
				WHERE `+relay.ShardSQL(relay.RowKey, shards)+` IS DISTINCT FROM `+relay.ShardSQL("partition_key", shards))
		}
	})
}

// numbered is the event_id of the nth row.
func numbered(n int) (u relay.UUID) {
	binary.BigEndian.PutUint64(u[8:], uint64(n))
	return u
}

// fill makes so many rows, with ids from one on, in one transaction.
func fill(t testing.TB, ctx context.Context, conn *pgx.Conn, from, n int, key func() string) {
	t.Helper()
	_, err := conn.CopyFrom(ctx, pgx.Identifier{"saga_outbox"}, []string{"event_id", "saga_id", "aggregate_id", "event_type", "payload"}, pgx.CopyFromSlice(n, func(i int) ([]any, error) {
		return []any{[16]byte(numbered(from + i)), "s", key(), "Made", "{}"}, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
}

// sameShard checks that a query counts nothing.
func sameShard(t testing.TB, ctx context.Context, conn *pgx.Conn, sql string) {
	t.Helper()
	var n int
	if err := conn.QueryRow(ctx, sql).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d rows, %v, of: %s", n, err, sql)
	}
}

// partitions checks that each row belongs to one shard, that the shards are about as large as each
// other, and that the filters are the conditions.
func partitions(t testing.TB, ctx context.Context, conn *pgx.Conn, db *pgtest.DB, set relay.Set, rows int) {
	t.Helper()
	for _, shards := range []int{2, 3, 4, 7, 64} {
		of := relay.Set{Slot: set.Slot, Publication: set.Publication, Shards: shards}
		var sum []string
		for _, shard := range of.All() {
			sum = append(sum, "count(*) FILTER (WHERE "+shard.SQL(relay.RowKey)+")")
		}
		var counts []int
		if err := conn.QueryRow(ctx, `SELECT ARRAY[`+strings.Join(sum, ", ")+`]::bigint[] FROM saga_outbox`).Scan(&counts); err != nil {
			t.Fatal(err)
		}
		all := 0
		for _, n := range counts {
			if all += n; n == 0 {
				t.Errorf("of %d shards one is empty: %v", shards, counts)
			}
		}
		// one value a row, so that a row is never in two
		sameShard(t, ctx, conn, fmt.Sprintf(`SELECT count(*) FROM saga_outbox WHERE (%s BETWEEN 0 AND %d) IS NOT TRUE`, relay.ShardSQL(relay.RowKey, fmt.Sprint(shards)), shards-1))
		if all != rows {
			t.Errorf("%d shards have %d rows, want %d: %v", shards, all, rows, counts)
		}
		for _, i := range []int{0, shards - 1} {
			shard := of.Shard(i)
			if _, err := cdc.EnsurePublication(ctx, db.Conn(t), shard); err != nil {
				t.Fatal(err)
			}
			var filter string
			if err := conn.QueryRow(ctx, `SELECT rowfilter FROM pg_publication_tables WHERE pubname = $1`, shard.Publication).Scan(&filter); err != nil {
				t.Fatal(err)
			}
			sameShard(t, ctx, conn, `SELECT count(*) FROM saga_outbox WHERE (`+filter+`) IS DISTINCT FROM (`+shard.SQL(relay.RowKey)+`)`)
		}
	}
}

// streamedKeys checks that each row comes through one slot, that of its shard, and that its key, as
// the ledger would have it, belongs to the same.
func streamedKeys(t testing.TB, ctx context.Context, conn *pgx.Conn, source *cdc.Source, set relay.Set, rows int) {
	t.Helper()
	var end string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
		t.Fatal(err)
	}
	until, err := relay.ParseLSN(end)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, conn, `CREATE TABLE ledger (event_id uuid, shard int, partition_key text)`)
	for i, shard := range set.All() {
		got := &keyIntake{until: until, done: make(chan struct{})}
		st, err := source.Open(ctx, shard, 0)
		if err != nil {
			t.Fatal(err)
		}
		reading, enough := context.WithCancel(ctx)
		go func() {
			select {
			case <-got.done:
			case <-reading.Done():
			}
			enough()
		}()
		err = st.Run(reading, got)
		_ = st.Close(ctx)
		select {
		case <-got.done:
		default:
			t.Fatalf("the stream of %s ended after %d events: %v", shard.Slot, len(got.keys), err)
		}
		_, err = conn.CopyFrom(ctx, pgx.Identifier{"ledger"}, []string{"event_id", "shard", "partition_key"}, pgx.CopyFromSlice(len(got.keys), func(n int) ([]any, error) {
			return []any{[16]byte(got.ids[n]), i, got.keys[n]}, nil
		}))
		if err != nil {
			t.Fatal(err)
		}
	}
	var all, distinct int
	if err := conn.QueryRow(ctx, `SELECT count(*), count(DISTINCT event_id) FROM ledger`).Scan(&all, &distinct); err != nil || all != rows || distinct != rows {
		t.Errorf("%d events of %d rows were streamed, %d wanted (%v)", all, distinct, rows, err)
	}
	sameShard(t, ctx, conn, `SELECT count(*) FROM ledger l JOIN saga_outbox o USING (event_id) WHERE shard IS DISTINCT FROM `+relay.ShardSQL(relay.RowKey, fmt.Sprint(set.Shards)))
	for _, shards := range []string{"2", "3", "4", "7", "64"} {
		sameShard(t, ctx, conn, `SELECT count(*) FROM ledger l JOIN saga_outbox o USING (event_id) WHERE `+relay.ShardSQL(relay.RowKey, shards)+` IS DISTINCT FROM `+relay.ShardSQL("partition_key", shards))
	}
}

// keyIntake keeps the keys of events up to a position.
type keyIntake struct {
	mu     sync.Mutex // guards what follows
	until  relay.LSN
	done   chan struct{}
	closed bool
	passed relay.LSN
	ids    []relay.UUID
	keys   []string
}

func (in *keyIntake) Admit(_ context.Context, events []relay.Event) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for i := range events {
		in.ids, in.keys = append(in.ids, events[i].ID), append(in.keys, events[i].AggregateID)
		in.move(events[i].CommitEnd)
	}
	return nil
}

func (in *keyIntake) Pass(lsn relay.LSN) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.move(lsn)
}

func (in *keyIntake) move(lsn relay.LSN) {
	if in.passed = max(in.passed, lsn); in.passed >= in.until && !in.closed {
		in.closed = true
		close(in.done)
	}
}

func (in *keyIntake) Heard(relay.LSN) {}

func (in *keyIntake) Watermark() relay.LSN {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.passed
}
