package doctor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// Config has the relay's settings that the checks depend on.
type Config struct {
	DatabaseURL      string
	Mode             string    // engine.Config.Mode
	Set              relay.Set // as the settings have it
	Failover         bool      // slots are to survive a failover
	WALSenderTimeout time.Duration
	WALBudget        int    // bytes; 0 for half of max_slot_wal_keep_size
	Mark             string // store.Config.Mark
	Retention        bool   // rows are removed …
	Archive          bool   // … or moved to the archive, by marks or by the retention
	ClaimTimeout     time.Duration
	LeaseTTL         time.Duration

	SinkNames []string // of BROKER_TYPE and RELAY_SINKS
	// BrokerTypes are the sinks that BROKER_TYPE can name, nil for all, and SinkKinds the kinds of
	// those of RELAY_SINKS, by name.
	BrokerTypes []string
	SinkKinds   map[string]string
	Sinks       []relay.Sink            // those of them that could be made
	Encoder     relay.Encoder           // makes the destinations of events
	Routers     map[string]relay.Router // engine.Config.Routers
	ByDefault   *relay.SinksByDefault   // engine.Config.SinksByDefault

	// RetainedTooMuch is how much WAL, in bytes, a slot may hold back before that is reported;
	// PendingTooLong how old a pending row may be.
	RetainedTooMuch int64
	PendingTooLong  time.Duration
	Now             func() time.Time
}

// Limits of the checks.
const (
	DefaultRetainedTooMuch = 1 << 30
	DefaultPendingTooLong  = 5 * time.Minute

	checkTimeout = 25 * time.Second // more than brokerTimeout twice
)

// exam is one examination. It is used by one goroutine.
type exam struct {
	cfg    Config
	report *Report

	conn    *pgx.Conn // nil when the database cannot be reached
	role    string    // ours, quoted
	dbname  string    // quoted
	dbraw   string    // as it is
	version int       // major
	standby bool

	// How the table is divided; after checkSet.
	set    store.TableSet
	change *relay.SetChange // nil: none is under way

	// About saga_outbox, after checkTables:
	table      uint32 // OID; 0 without a table
	tableName  string // qualified and quoted
	tableOwner string // quoted
	relayTable bool   // saga_outbox_relay can be read
	ledger     bool   // saga_outbox_delivery can be read

	running []string // owners of the leases that are taken, after checkOwners
}

// Examine runs all checks. problems are those of the settings, which the caller has found.
func Examine(ctx context.Context, cfg Config, problems []error) *Report {
	ex := &exam{cfg: cfg, report: &Report{Findings: []Finding{}}}
	ex.set = store.TableSet{Set: cfg.Set}
	for _, problem := range problems {
		ex.add(Finding{
			Check: "settings", Severity: Broken, Summary: problem.Error(),
			Why: "sagaz-relay run refuses to start with it.", Fix: []Step{do("set it right; sagaz-relay run --help lists the variables")},
		})
	}
	if cfg.DatabaseURL != "" {
		ex.database(ctx)
	}
	for _, sink := range cfg.Sinks {
		ex.each(ctx, func(ctx context.Context) { ex.checkSink(ctx, sink) })
		if cfg.Routers[sink.Name()] != nil {
			ex.each(ctx, func(ctx context.Context) { ex.checkRules(ctx, sink.Name()) })
		}
	}
	if ex.conn != nil {
		_ = ex.conn.Close(context.WithoutCancel(ctx))
	}
	ex.report.Counts = make(map[Severity]int)
	for s := OK; s <= Broken; s++ {
		ex.report.Counts[s] = 0
	}
	for i := range ex.report.Findings {
		ex.report.Counts[ex.report.Findings[i].Severity]++
	}
	return ex.report
}

// database runs the checks that need a connection.
func (ex *exam) database(ctx context.Context) {
	ex.each(ctx, ex.checkDatabase)
	if ex.conn == nil {
		ex.add(Finding{
			Check: "tables and more", Severity: Unknown, Summary: "not looked at: the database cannot be reached",
		})
		return
	}
	for _, check := range []func(context.Context){
		ex.checkClock, ex.checkPooler, ex.checkSet,
		ex.checkWALLevel, ex.checkReplication, ex.checkSlotsFree, ex.checkSendersFree, ex.checkKeepSize,
		ex.checkTables, ex.checkMigrations, ex.checkTable, ex.checkInserts, ex.checkStrangers,
		ex.checkPublication, ex.checkOwners, ex.checkSlots, ex.checkOtherSlots,
		ex.checkIndexes, ex.checkPages, ex.checkSweepIndex, ex.checkVacuum, ex.checkOrigin,
		ex.checkRows, ex.checkLedger, ex.checkBroker,
	} {
		ex.each(ctx, check)
	}
}

// each gives a check its time. A check that used it up has cost us the connection: the next one
// gets a new one.
func (ex *exam) each(ctx context.Context, check func(context.Context)) {
	if ex.conn != nil && ex.conn.IsClosed() {
		reconnecting, cancel := context.WithTimeout(ctx, checkTimeout)
		if conn, err := store.Connect(reconnecting, ex.cfg.DatabaseURL, "doctor"); err == nil {
			ex.conn = conn
		}
		cancel()
	}
	checking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	check(checking)
}

// add adds a finding, unless it is there: each slot of a set may have the same to report.
func (ex *exam) add(f Finding) {
	if !slices.ContainsFunc(ex.report.Findings, func(g Finding) bool {
		return g.Check == f.Check && g.Severity == f.Severity && g.Summary == f.Summary
	}) {
		ex.report.Findings = append(ex.report.Findings, f)
	}
}

func (ex *exam) ok(check, format string, args ...any) {
	ex.add(Finding{Check: check, Summary: fmt.Sprintf(format, args...)})
}

func (ex *exam) unknown(check string, err error, fix ...Step) {
	ex.add(Finding{Check: check, Severity: Unknown, Summary: fmt.Sprintf("could not be found out: %v", err), Fix: fix})
}

// ask reads one row; a failure is the check's finding.
func (ex *exam) ask(ctx context.Context, check, query string, args []any, dest ...any) bool {
	if err := ex.conn.QueryRow(ctx, query, args...).Scan(dest...); err != nil {
		ex.unknown(check, err)
		return false
	}
	return true
}

// streaming reports whether the relay may stream, and how bad it is when it cannot.
func (ex *exam) streaming() (bool, Severity) {
	switch ex.cfg.Mode {
	case relay.ModePolling:
		return false, OK
	case relay.ModeCDC:
		return true, Broken
	default:
		return true, Degraded
	}
}

// noStream is why it matters that nothing can be streamed.
func (ex *exam) noStream() string {
	if ex.cfg.Mode == relay.ModeCDC {
		return "RELAY_MODE=cdc refuses to start without it."
	}
	return "Without it the relay polls the table instead: slower, and with more load on the database."
}
