package doctor

import (
	"context"
	"errors"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
	"github.com/sagaz-relay/relay/relay/store"
)

const cannotWork = "The relay cannot work without it."

// refuses adds what a start refuses, in its words.
func (ex *exam) refuses(check string, f *relay.SetupError) {
	finding := Finding{Check: check, Severity: Broken, Summary: f.Problem, Why: cannotWork, Fix: steps(f)}
	if f.Err != nil {
		finding.Summary += ": " + f.Err.Error()
	}
	if f.Streaming {
		_, finding.Severity = ex.streaming()
		finding.Why = ex.noStream()
	}
	ex.add(finding)
}

// steps are a fix in pieces, so that each statement is a step. Put together they are the fix again.
func steps(f *relay.SetupError) []Step {
	var all []Step
	rest := f.Fix
	for _, statement := range f.SQL {
		before, after, found := strings.Cut(rest, statement)
		if !found {
			continue
		}
		if before = strings.TrimSpace(before); before != "" {
			all = append(all, do("%s", before))
		}
		all, rest = append(all, sql("%s", statement)), after
	}
	if before, is := strings.CutSuffix(rest, "run: "+migrate.Run); is {
		if before != "" {
			all = append(all, do("%s", before+"run:"))
		}
		return append(all, migrate)
	}
	if rest = strings.TrimSpace(rest); rest != "" {
		all = append(all, do("%s", rest))
	}
	return all
}

// examined adds what the checks have found by which a relay starts or not.
func (ex *exam) examined(all ...relay.Examined) {
	for _, e := range all {
		for _, f := range e.Faults {
			ex.refuses(e.Check, f)
		}
		switch {
		case errors.Is(e.Err, sessions.ErrStandby):
			problem, fix, _ := strings.Cut(e.Err.Error(), "; ")
			ex.add(Finding{Check: e.Check, Severity: Broken, Summary: problem, Why: "The relay marks rows: it has to reach the primary, and waits for it.", Fix: []Step{do("%s", fix)}})
		case e.Err != nil:
			ex.unknown(e.Check, e.Err)
		case e.Fine != "":
			ex.ok(e.Check, "%s", e.Fine)
		}
	}
}

// checkTables makes the checks of a start, and notes what the others here need of the tables.
func (ex *exam) checkTables(ctx context.Context) {
	ex.examined(store.Examine(ctx, ex.conn, ex.cfg.Mark, ex.cfg.Retention, ex.cfg.Archive)...)
	about := sessions.Of(ex.conn.PgConn())
	ex.ask(ctx, "tables", `SELECT coalesce(c.oid, 0), coalesce(quote_ident(s.nspname) || '.' || quote_ident(c.relname), ''), coalesce(quote_ident(pg_get_userbyid(c.relowner)), ''),
			coalesce(has_table_privilege(to_regclass($2), 'SELECT'), false), coalesce(has_table_privilege(to_regclass($3), 'SELECT'), false)
		FROM (SELECT to_regclass($1) AS oid) t LEFT JOIN pg_class c ON c.oid = t.oid LEFT JOIN pg_namespace s ON s.oid = c.relnamespace`,
		[]any{about.Named("saga_outbox"), about.Named("saga_outbox_relay"), about.Named("saga_outbox_delivery")},
		&ex.table, &ex.tableName, &ex.tableOwner, &ex.relayTable, &ex.ledger)
}

// checkReplication makes a replication connection, as the relay does.
func (ex *exam) checkReplication(ctx context.Context) {
	if stream, _ := ex.streaming(); !stream {
		return
	}
	cfg := cdc.DefaultConfig()
	cfg.DatabaseURL, cfg.WALSenderTimeout = ex.cfg.DatabaseURL, ex.cfg.WALSenderTimeout
	cfg.StatusInterval = min(cfg.StatusInterval, cfg.WALSenderTimeout/3)
	source, err := cdc.New(cfg, hclog.NewNullLogger())
	if err != nil { // reported with the settings
		return
	}
	ex.examined(source.ExamineConnection(ctx))
}

func (ex *exam) checkPublication(ctx context.Context) {
	const check = "publication"
	if stream, _ := ex.streaming(); !stream || ex.table == 0 {
		return
	}
	for _, shard := range ex.set.All() {
		ex.examined(cdc.ExaminePublication(ctx, ex.conn, shard))
		if !shard.Whole() {
			continue // with a filter, that is refused
		}
		var more bool
		if ex.ask(ctx, check, `SELECT coalesce(bool_or(pubinsert AND (pubupdate OR pubdelete)), false) FROM pg_publication WHERE pubname = $1`, []any{shard.Publication}, &more) && more {
			ex.add(Finding{
				Check: check, Severity: Note, Summary: shard.Publication + ": publishes updates or deletes too",
				Why: "PostgreSQL decodes and sends every mark of the relay, which then throws it away.",
				Fix: []Step{do("as the owner of the publication:"), sql(`ALTER PUBLICATION %s SET (publish = 'insert');`, term.Ident(shard.Publication))},
			})
		}
	}
}
