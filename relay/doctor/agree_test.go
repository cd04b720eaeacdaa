package doctor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
	"github.com/sagaz-relay/relay/relay/store"
)

// starts are the answers that a relay gets when it starts: about the tables, and, where it may
// stream, about that and each slot.
func starts(t *testing.T, cfg Config) []error {
	t.Helper()
	of := store.DefaultConfig()
	of.DatabaseURL, of.Owner, of.Mark = cfg.DatabaseURL, "relay-1", cfg.Mark
	rows, err := store.New(of, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Retention || cfg.Archive && cfg.Mark != store.MarkArchive {
		rows.Prunes(cfg.Archive)
	}
	errs := []error{rows.Check(t.Context())}
	// A start gets no further.
	if cfg.Mode == relay.ModePolling || errs[0] != nil && !errors.Is(errs[0], sessions.ErrStandby) {
		return errs
	}
	stream := cdc.DefaultConfig()
	stream.DatabaseURL = cfg.DatabaseURL
	source, err := cdc.New(stream, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	errs = append(errs, source.Check(t.Context(), cfg.Set))
	for _, shard := range cfg.Set.All() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		opened, err := source.Open(ctx, shard, 0)
		if err == nil {
			_ = opened.Close(ctx)
		}
		cancel()
		var gone *relay.SlotGoneError
		if !errors.As(err, &gone) { // it is made
			errs = append(errs, err)
		}
	}
	return errs
}

// fixOf is a fix as one text again.
func fixOf(f *Finding) string {
	var parts []string
	for _, step := range f.Fix {
		parts = append(parts, step.Do+step.SQL+step.Run)
	}
	return strings.Join(parts, " ")
}

// agree checks that doctor and start find the same, both ways: the same problem, the same fix, and
// as bad as it is.
func agree(t *testing.T, cfg Config, report *Report) {
	t.Helper()
	streams := Degraded
	if cfg.Mode == relay.ModeCDC {
		streams = Broken
	}
	refused := false
	for _, err := range starts(t, cfg) {
		var setup *relay.SetupError
		if !errors.As(err, &setup) {
			if err != nil {
				t.Errorf("the start waits for: %v", err)
			}
			continue
		}
		refused = true
		severity := Broken
		if setup.Streaming {
			severity = streams
		}
		f := report.finding("", severity, setup.Problem)
		if f == nil {
			t.Errorf("the start refuses, and the doctor has no finding %s: %v\n%s", severity, err, show(report))
		} else if fixOf(f) != setup.Fix {
			t.Errorf("to fix it the doctor has\n%s\nand the start has\n%s", fixOf(f), setup.Fix)
		}
	}
	for i := range report.Findings {
		f := &report.Findings[i]
		if f.Severity == Broken && f.Check != "settings" && f.Check != "broker" && !strings.HasPrefix(f.Check, "sink ") && !refused {
			t.Errorf("the doctor finds %s, and the start does not refuse: %s", f.Severity, f.Summary)
		}
	}
}

// Each of the rights that the documentation grants is missed by both when it is taken away,
// whatever the way to mark.
func TestEachGrant(t *testing.T) {
	for _, version := range pgtest.Versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			db := pgtest.NewVersion(t, version, pgtest.Migrated())
			role, _, dsn := db.Role(t, "REPLICATION")
			exec(t, db.DSN, strings.ReplaceAll(ours, "%role", role), store.Grants(role))
			cfg := configFor(t, dsn)
			cfg.Mark, cfg.Archive, cfg.Retention = store.MarkArchive, true, true
			if report := Examine(t.Context(), cfg, nil); report.Worst() > Note {
				t.Fatalf("with all of them:\n%s", show(report))
			}
			for _, need := range store.Needs(cfg.Mark, true, true) {
				for _, right := range need.Rights {
					exec(t, db.DSN, `REVOKE `+right+` ON `+need.Table+` FROM `+role)
					report := Examine(t.Context(), cfg, nil)
					f := report.finding("rights", Broken, "lacks "+right+" on "+need.Table)
					if f == nil {
						t.Fatalf("%s on %s is not missed:\n%s", right, need.Table, show(report))
					}
					agree(t, cfg, report)
					applyFix(t, db.DSN, f)
				}
			}
			if report := Examine(t.Context(), cfg, nil); report.Worst() > Note {
				t.Errorf("with all of them again:\n%s", show(report))
			}
		})
	}
}
