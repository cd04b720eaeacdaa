package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/migrations"
	"github.com/sagaz-relay/relay/relay/store"
)

var (
	asOwner = do("as the owner of saga_outbox, or of the database:")
	migrate = run("sagaz-relay migrate")
)

func (ex *exam) checkMigrations(ctx context.Context) {
	const check = "migrations"
	var there, readable bool
	if !ex.ask(ctx, check, `SELECT to_regclass('saga_outbox_migrations') IS NOT NULL, coalesce(has_table_privilege(to_regclass('saga_outbox_migrations'), 'SELECT'), false)`, nil, &there, &readable) {
		return
	}
	var done []int32
	switch {
	case there && !readable:
		ex.add(Finding{
			Check: check, Severity: Unknown, Summary: "could not be found out: saga_outbox_migrations may not be read",
			Fix: []Step{sql("%s", store.MigrationsGrant(ex.role))},
		})
		return
	case there:
		if !ex.ask(ctx, check, `SELECT coalesce(array_agg(version ORDER BY version), '{}') FROM saga_outbox_migrations`, nil, &done) {
			return
		}
	}
	all := migrations.All()
	var missing []string
	for _, m := range all {
		if !slices.Contains(done, int32(m.Version)) { //nolint:gosec // a small number
			missing = append(missing, fmt.Sprintf("%04d_%s", m.Version, m.Name))
		}
	}
	switch newest := all[len(all)-1].Version; {
	case missing != nil:
		ex.add(Finding{Check: check, Severity: Degraded, Summary: "not applied: " + strings.Join(missing, ", "), Why: "The relay's tables are older than this sagaz-relay: what it cannot do without is listed above.", Fix: []Step{asOwner, migrate}})
	case int(done[len(done)-1]) > newest:
		ex.add(Finding{
			Check: check, Severity: Note, Summary: fmt.Sprintf("up to %04d: applied by a sagaz-relay newer than this one, which knows %04d", done[len(done)-1], newest),
			Fix: []Step{do("use the newer sagaz-relay")},
		})
	default:
		ex.ok(check, "up to date, %04d", newest)
	}
}
