package doctor

import (
	"context"
	"strings"
)

// checkInserts looks for triggers that change a row after it was inserted. The stream carries
// inserts, so what such a trigger makes of the row in the same transaction is not delivered.
func (ex *exam) checkInserts(ctx context.Context) {
	const check = "inserts"
	if ex.table == 0 {
		return
	}
	var triggers []string
	if !ex.ask(ctx, check, `SELECT ARRAY(SELECT quote_ident(t.tgname) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = $1::bigint::oid AND NOT t.tgisinternal
			AND t.tgenabled IN ('O', 'A') AND t.tgtype & 4 > 0 AND t.tgtype & 66 = 0 AND p.prosrc ~* 'update\M' ORDER BY t.tgname)`,
		[]any{int64(ex.table)}, &triggers) {
		return
	}
	if len(triggers) == 0 {
		ex.ok(check, "no trigger updates rows after they were inserted")
		return
	}
	f := Finding{
		Check: check, Severity: Note, Summary: "triggers that run after an insert and have an UPDATE in them: " + strings.Join(triggers, ", "),
		Why: "An event is delivered as its row was inserted. What a trigger, or the application in the same transaction, changes of payload or key afterwards is not.",
		Fix: []Step{do("if they change rows of saga_outbox, make BEFORE INSERT triggers of them, which change NEW; their result is delivered")},
	}
	ex.add(f)
}
