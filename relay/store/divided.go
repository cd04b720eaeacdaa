package store

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
)

// SetOf returns how the table is divided, for those who look at it and change nothing. The database
// has the number of slots, and the settings have the names. Where nobody has decided the number yet
// (Generation 0), it is what the first relay would decide.
func SetOf(ctx context.Context, conn *pgx.Conn, settings relay.Set) (*TableSet, error) {
	about := sessions.Of(conn.PgConn())
	if about.Named("saga_outbox_set") != nil {
		set, err := ReadSet(ctx, conn)
		if err != nil {
			return nil, err
		}
		if set != nil {
			set.Slot, set.Publication = settings.Slot, settings.Publication
			return set, nil
		}
	}
	set := &TableSet{Set: settings}
	set.Generation = 0
	if about.Named("saga_outbox_relay") != nil {
		var before bool
		if err := conn.QueryRow(ctx, `SELECT `+workedBefore).Scan(&before); err != nil {
			return nil, fmt.Errorf("read the slots: %w", setup(err))
		}
		if before { // makeSetSQL
			set.Shards = 1
		}
	}
	return set, nil
}

// ofAnySet is true for the name of a slot or publication of a set with this base, whatever its
// number of slots was, but for a set of one.
func ofAnySet(name, base string) string {
	return `starts_with(` + name + `, ` + base + ` || '_') AND substr(` + name + `, length(` + base + `) + 2) ~ '^[0-9]+of[0-9]+$'`
}

// FormerSlots returns the names of this database's replication slots that a set of another number
// of slots has left behind: those with the set's base name which are not of it, nor of the set that
// it is changed to.
func FormerSlots(ctx context.Context, conn *pgx.Conn, set *TableSet) ([]string, error) {
	now := set.Slots()
	if set.Target != 0 {
		now = append(now, set.target().Slots()...)
	}
	former, err := names(ctx, conn, `SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() AND plugin = 'pgoutput'
		AND (slot_name::text = $1 OR `+ofAnySet("slot_name::text", "$1::text")+`) AND NOT slot_name::text = ANY($2::text[]) ORDER BY 1`, set.Slot, now)
	if err != nil {
		return nil, fmt.Errorf("read the slots: %w", setup(err))
	}
	return former, nil
}

// JustBequeathedSQL is the condition that a slot, by its name, has got an heir within two minutes: the
// number of slots was changed, or RELAY_SLOT. In that time the owners who go on drop it.
func JustBequeathedSQL(slot string) string {
	return `EXISTS (SELECT FROM saga_outbox_relay WHERE slot = ` + slot + ` AND heir IS NOT NULL AND renewed_at > now() + interval '100 years' - interval '2 minutes')`
}

// FormerPublications returns the names of the publications that a set of another number of slots
// has left behind, and that carry nothing but the outbox table. That of a set of one has a name that
// somebody else may have chosen: it counts where there was such a set, or, alone, was to be one.
func FormerPublications(ctx context.Context, conn *pgx.Conn, set *TableSet, alone bool) ([]string, error) {
	now := set.Publications()
	if set.Target != 0 {
		now = append(now, set.target().Publications()...)
	}
	former, err := names(ctx, conn, `SELECT p.pubname::text FROM pg_publication p WHERE (p.pubname::text = $1 AND $3 OR `+ofAnySet("p.pubname::text", "$1::text")+`) AND NOT p.pubname::text = ANY($2::text[])
		AND (SELECT count(*) > 0 AND bool_and(t.tablename = 'saga_outbox') FROM pg_publication_tables t WHERE t.pubname = p.pubname) ORDER BY 1`, set.Publication, now, set.Generation > 1 || alone)
	if err != nil {
		return nil, fmt.Errorf("read the publications: %w", setup(err))
	}
	return former, nil
}
