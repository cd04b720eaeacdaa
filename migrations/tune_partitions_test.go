package migrations_test

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// A table with partitions, one of which has partitions itself and one an odd name, and with the
// library's indexes.
const partitionedSchema = `CREATE TABLE saga_outbox (
		event_id uuid NOT NULL, saga_id varchar(255) NOT NULL, aggregate_type varchar(255) NOT NULL DEFAULT 'saga', aggregate_id varchar(255) NOT NULL, event_type varchar(255) NOT NULL,
		payload jsonb NOT NULL, headers jsonb DEFAULT '{}', status varchar(50) NOT NULL DEFAULT 'pending', created_at timestamptz NOT NULL DEFAULT now(), claimed_at timestamptz, sent_at timestamptz,
		retry_count int DEFAULT 0, last_error text, worker_id varchar(255), PRIMARY KEY (event_id, created_at)) PARTITION BY RANGE (created_at);
	CREATE TABLE outbox_old PARTITION OF saga_outbox FOR VALUES FROM (MINVALUE) TO ('2020-01-01') WITH (fillfactor = 80);
	CREATE TABLE "Outbox now's" PARTITION OF saga_outbox FOR VALUES FROM ('2020-01-01') TO ('2100-01-01') PARTITION BY HASH (event_id);
	CREATE TABLE outbox_now_0 PARTITION OF "Outbox now's" FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE "outbox Now 1" PARTITION OF "Outbox now's" FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE INDEX idx_outbox_pending ON saga_outbox (created_at) WHERE status = 'pending';
	CREATE INDEX idx_outbox_claimed_at ON saga_outbox (claimed_at) WHERE status = 'claimed';
	INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload) SELECT gen_random_uuid(), 's', 'a', 't', '{}' FROM generate_series(1, 1000)`

func TestTunePartitions(t *testing.T) {
	onEach(t, func(t *testing.T, version string) {
		conn := pgtest.NewVersion(t, version, pgtest.SQL(partitionedSchema)).Conn(t)
		// What a run that was interrupted has left behind.
		exec(t, conn, `DO $$ BEGIN EXECUTE format('CREATE INDEX idx_outbox_pending_p%s ON outbox_now_0 (status)', 'outbox_now_0'::regclass::oid); END $$`)
		did := strings.Join(tune(t, conn), "\n")
		for _, want := range []string{"index idx_outbox_pending is now on btree (created_at), in 3 partitions", `partition public."outbox Now 1" are filled`} {
			if !strings.Contains(did, want) {
				t.Errorf("%q is missing in\n%s", want, did)
			}
		}
		if strings.Contains(did, "outbox_old are filled") {
			t.Errorf("somebody's fill factor was changed:\n%s", did)
		}
		for index, want := range map[string]int{"idx_outbox_pending": 5, "idx_outbox_claimed_at": 5} {
			if got := value[int](t, conn, `SELECT count(*) FROM pg_partition_tree('`+index+`'::regclass) t JOIN pg_index i ON i.indexrelid = t.relid
				WHERE i.indisvalid AND pg_get_indexdef(i.indexrelid) NOT LIKE '%status%'`); got != want {
				t.Errorf("%s is on %d tables and partitions, want %d", index, got, want)
			}
		}
		if got := value[int](t, conn, `SELECT count(*) FROM pg_indexes WHERE tablename IN ('outbox_now_0', 'outbox Now 1') AND indexdef LIKE '%(created_at)%'`); got != 2 {
			t.Errorf("%d indexes on created_at on two partitions, want 2: none was built twice", got)
		}
		exec(t, conn, `CREATE TABLE outbox_later PARTITION OF saga_outbox FOR VALUES FROM ('2100-01-01') TO (MAXVALUE)`)
		if did := tune(t, conn); len(did) != 1 || !strings.Contains(did[0], "outbox_later are filled") {
			t.Errorf("with a new partition the second Tune did %q", did)
		}
		if did := tune(t, conn); len(did) != 0 {
			t.Errorf("the third Tune did %q", did)
		}
		if got := value[int](t, conn, `SELECT count(*) FROM saga_outbox`); got != 1000 {
			t.Errorf("%d rows, want 1000", got)
		}
	})
}
