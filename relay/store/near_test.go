package store

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// Large batches are marked alike wherever their rows are: side by side, all over the table, or gone;
// and each row is changed once.
func TestMarkNear(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		exec(t, db, `CREATE TABLE changes (event_id uuid)`)
		exec(t, db, `CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.changes VALUES (OLD.event_id); RETURN NULL; END $$`)
		exec(t, db, `CREATE TRIGGER note_change AFTER UPDATE OR DELETE ON saga_outbox FOR EACH ROW EXECUTE FUNCTION note_change()`)
		const rows = 1000
		for _, place := range []struct {
			name  string
			make  []string // after the rows were inserted
			gone  int
			apart bool // most are found by their ids
		}{
			{"side by side", nil, 0, false},
			{"between old rows that were deleted", []string{`DELETE FROM saga_outbox WHERE event_id > '00000000-0000-0000-0000-0000000003e8'`}, 0, false},
			{"the last ones elsewhere", []string{
				insertMany(10_001, 30_000),
				`UPDATE saga_outbox SET payload = jsonb_build_object('n', repeat('x', 1500)) WHERE event_id BETWEEN '00000000-0000-0000-0000-0000000003de' AND '00000000-0000-0000-0000-0000000003e6'`,
			}, 0, false},
			{"the samples gone", []string{`DELETE FROM saga_outbox WHERE event_id IN (SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(1 + i * 999 / 15), 12, '0'))::uuid FROM generate_series(0, 15) i)`}, nearSamples, true},
			{"all over the table", []string{
				insertMany(10_001, 90_000),
				`UPDATE saga_outbox SET payload = jsonb_build_object('n', repeat('x', (random() * 1000)::int)) WHERE ('x' || right(event_id::text, 2))::bit(8)::int % 2 = 0`,
				`CREATE TABLE moved AS SELECT * FROM saga_outbox ORDER BY md5(event_id::text)`, `TRUNCATE saga_outbox`, `INSERT INTO saga_outbox SELECT * FROM moved`, `DROP TABLE moved`,
			}, 0, true},
		} {
			for _, mode := range []string{MarkUpdate, MarkDelete, MarkArchive} {
				t.Run(place.name+"/"+mode, func(t *testing.T) {
					defer exec(t, db, `TRUNCATE saga_outbox, saga_outbox_archive, changes`)
					l := acquire(t, newStore(t, withMark(db, mode), nil), "outbox")
					defer release(t, l)
					marks := marksOf(insert(t, db, 1, rows))
					for _, sql := range place.make {
						exec(t, db, sql)
					}
					exec(t, db, `TRUNCATE changes`)
					mark(t, l, marks)
					if got := value[int](t, db.Pool, `SELECT count(*) FROM changes`); got != rows-place.gone {
						t.Errorf("%d changes of rows, want %d", got, rows-place.gone)
					}
					if got := value[int](t, db.Pool, `SELECT count(DISTINCT event_id) FROM changes`); got != rows-place.gone {
						t.Errorf("%d rows changed, want %d", got, rows-place.gone)
					}
					if got := value[int](t, db.Pool, `SELECT count(*) FROM saga_outbox WHERE event_id <= $1 AND status <> 'sent'`, id(rows).String()); got != 0 {
						t.Errorf("%d rows are without their mark", got)
					}
					if got := l.marks.near.apart > 0; got != (place.apart && mode != MarkArchive) {
						t.Errorf("looks at pages no more: %t, want %t", got, place.apart)
					}
				})
			}
		}
	})
}

func insertMany(from, to int) string {
	return fmt.Sprintf(`INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload)
		SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(i), 12, '0'))::uuid, 's', 'a', 'Tested', '{}' FROM generate_series(%d, %d) i`, from, to)
}

// A table with partitions, and one whose pages the role may not ask for, are marked by ids.
func TestMarkNearIsNotNeeded(t *testing.T) {
	onEach(t, func(t *testing.T, db *pgtest.DB) {
		l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		role, _, _ := db.Role(t, "")
		exec(t, db, `GRANT SELECT (event_id, status), UPDATE (status, sent_at) ON saga_outbox TO `+role)
		exec(t, db, `GRANT SELECT, UPDATE ON saga_outbox_relay TO `+role)
		marks := marksOf(insert(t, db, 1, 1000))
		if err := l.with(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, `SET ROLE `+role)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		mark(t, l, marks)
		if got := counts(t, db); got != "1000 sent" || !l.marks.near.never {
			t.Errorf("by a role without the right: %s; asks again: %t", got, !l.marks.near.never)
		}
		release(t, l)
		exec(t, db, `ALTER TABLE saga_outbox RENAME TO saga_outbox_part`)
		exec(t, db, `CREATE TABLE saga_outbox (LIKE saga_outbox_part INCLUDING DEFAULTS) PARTITION BY RANGE (created_at)`)
		exec(t, db, `ALTER TABLE saga_outbox ATTACH PARTITION saga_outbox_part DEFAULT`)
		other := acquire(t, newStore(t, testConfig(db), nil), "outbox")
		defer release(t, other)
		mark(t, other, marksOf(insert(t, db, 1001, 2000)))
		if got := counts(t, db); got != "2000 sent" || !other.marks.near.never {
			t.Errorf("in partitions: %s; asks for pages: %t", got, !other.marks.near.never)
		}
	})
}
