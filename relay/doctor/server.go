package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

const (
	oldestServer = 14
	newestServer = 18 // tested
)

func (ex *exam) checkDatabase(ctx context.Context) {
	const check = "database"
	conn, err := store.Connect(ctx, ex.cfg.DatabaseURL, "doctor")
	if err != nil {
		f := Finding{Check: check, Severity: Broken, Summary: firstLine(err.Error()), Why: "The outbox is in it: without it nothing works."}
		if setup := (*relay.SetupError)(nil); errors.As(err, &setup) {
			f.Summary, f.Fix = setup.Problem, nil
			if setup.Err != nil {
				f.Summary += ": " + setup.Err.Error()
				f.Fix = ex.hostLine(setup.Err)
			}
			f.Fix = append(f.Fix, do("%s", cmp.Or(setup.Fix, "set DATABASE_URL right")))
		} else {
			f.Fix = []Step{do("check that host and port of DATABASE_URL are right, that PostgreSQL runs, and that no firewall or network policy is in between")}
		}
		ex.add(f)
		return
	}
	var version string
	err = conn.QueryRow(ctx, `SELECT quote_ident(current_user), quote_ident(current_database()), current_database(), current_setting('server_version_num')::int / 10000,
		current_setting('server_version'), pg_is_in_recovery()`).Scan(&ex.role, &ex.dbname, &ex.dbraw, &ex.version, &version, &ex.standby)
	if err != nil {
		_ = conn.Close(ctx)
		ex.add(Finding{Check: check, Severity: Broken, Summary: fmt.Sprintf("connected, but cannot ask anything: %v", err), Why: "The outbox is in it: without it nothing works."})
		return
	}
	ex.conn = conn
	cfg := conn.Config()
	where := fmt.Sprintf("PostgreSQL %s at %s:%d, database %s, role %s", firstWord(version), cfg.Host, cfg.Port, ex.dbname, ex.role)
	switch {
	case ex.version < oldestServer:
		ex.add(Finding{
			Check: check, Severity: Broken, Summary: where + ": too old", Why: fmt.Sprintf("The relay needs PostgreSQL %d or later.", oldestServer),
			Fix: []Step{do("upgrade PostgreSQL")},
		})
	case ex.standby:
		ex.add(Finding{
			Check: check, Severity: Broken, Summary: where + ": a standby, which takes no writes", Why: "The relay marks rows: it has to reach the primary.",
			Fix: []Step{do("name the primary in DATABASE_URL; with several hosts add target_session_attrs=read-write")},
		})
	case ex.version > newestServer:
		ex.add(Finding{Check: check, Severity: Note, Summary: fmt.Sprintf("%s: tested are %d to %d", where, oldestServer, newestServer)})
	default:
		ex.ok(check, "%s", where)
	}
}

// refused is how the server says that no line of pg_hba.conf lets us in.
var refused = regexp.MustCompile(`no pg_hba.conf entry for host "([^"]*)", user "([^"]*)", database "([^"]*)"`)

// hostLine is the line of pg_hba.conf that is missing, if that is what the server said.
func (ex *exam) hostLine(err error) []Step {
	m := refused.FindStringSubmatch(err.Error())
	if m == nil {
		return nil
	}
	bits := 32
	if strings.Contains(m[1], ":") {
		bits = 128
	}
	return []Step{do("add to pg_hba.conf, and then run SELECT pg_reload_conf():  host %s %s %s/%d scram-sha-256", m[3], m[2], m[1], bits), do("or")}
}

// firstLine leaves out what pgx repeats for each way it has tried.
func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSuffix(line, ":")
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, " ")
	return word
}

// tooSkewed is the difference between two clocks that is worth telling.
const tooSkewed = 5 * time.Second

func (ex *exam) checkClock(ctx context.Context) {
	const check = "clock"
	before := ex.cfg.Now()
	var theirs time.Time
	if !ex.ask(ctx, check, `SELECT clock_timestamp()`, nil, &theirs) {
		return
	}
	round := ex.cfg.Now().Sub(before)
	skew := theirs.Sub(before.Add(round / 2))
	if skew.Abs()-round/2 <= tooSkewed {
		ex.ok(check, "within %s of the server's", max(skew.Abs(), time.Millisecond).Round(time.Millisecond))
		return
	}
	ahead := "ahead of"
	if skew < 0 {
		ahead = "behind"
	}
	ex.add(Finding{
		Check: check, Severity: Degraded, Summary: fmt.Sprintf("the server's clock is %s %s this host's", skew.Abs().Round(time.Second), ahead),
		Why: "Applications set created_at by their clocks, by which rows from before the slot are put in order; lag, age and retention are told wrong.",
		Fix: []Step{do("let both follow one time source: chronyc tracking, or timedatectl timesync-status, shows which one is off")},
	})
}

// checkPooler looks for something between us and PostgreSQL that shares out connections: it does not take settings at the start of a
// session, or gives another backend than it said.
func (ex *exam) checkPooler(ctx context.Context) {
	const check = "pooler"
	var pid uint32
	if !ex.ask(ctx, check, `SELECT pg_backend_pid()`, nil, &pid) {
		return
	}
	sign := ""
	if pid != ex.conn.PgConn().PID() {
		sign = "the session is not the one that the connection was made to"
	}
	cfg := ex.conn.Config().Copy()
	if sign == "" && !strings.HasPrefix(cfg.Host, "/") { // keepalive settings read 0 on a Unix socket
		const idle = "7"
		cfg.RuntimeParams["tcp_keepalives_idle"] = idle
		var got string
		conn, err := pgx.ConnectConfig(ctx, cfg)
		if err == nil {
			err = conn.QueryRow(ctx, `SELECT current_setting('tcp_keepalives_idle')`).Scan(&got)
			_ = conn.Close(ctx)
		}
		var pg *pgconn.PgError
		switch {
		case errors.As(err, &pg) && strings.Contains(pg.Message, "startup parameter"):
			sign = "it refuses settings at the start of a session (" + pg.Message + ")"
		case err != nil:
			ex.unknown(check, store.ConnectCause(err))
			return
		case got != idle:
			sign = "settings at the start of a session are lost"
		}
	}
	switch stream, severity := ex.streaming(); {
	case sign == "":
		ex.ok(check, "none in between")
	case !stream:
		ex.add(Finding{Check: check, Severity: Note, Summary: "one is in between: " + sign, Why: "With RELAY_MODE=polling that works; a dead relay is replaced after RELAY_LEASE_TTL only."})
	default:
		ex.add(Finding{
			Check: check, Severity: severity, Summary: "one is in between: " + sign, Why: "A pooler carries no replication. " + ex.noStream(),
			Fix: []Step{do("let DATABASE_URL name PostgreSQL itself, past the pooler (its own port, often 5432 instead of 6432); or set RELAY_MODE=polling")},
		})
	}
}

func (ex *exam) checkWALLevel(ctx context.Context) {
	const check = "wal_level"
	stream, severity := ex.streaming()
	var level string
	if !stream || !ex.ask(ctx, check, `SELECT current_setting('wal_level')`, nil, &level) {
		return
	}
	if level == "logical" {
		ex.ok(check, "logical")
		return
	}
	ex.add(Finding{
		Check: check, Severity: severity, Summary: level + ", not logical", Why: "Logical replication needs it. " + ex.noStream(),
		Fix: []Step{sql(`ALTER SYSTEM SET wal_level = 'logical';`), do("then restart PostgreSQL (managed services have a parameter for it: rds.logical_replication, cloudsql.logical_decoding)")},
	})
}

// checkReplication makes a replication connection, as the relay does.
func (ex *exam) checkReplication(ctx context.Context) {
	const check = "replication"
	stream, severity := ex.streaming()
	if !stream {
		return
	}
	cfg := ex.conn.Config().Config.Copy()
	cfg.RuntimeParams["application_name"] = "sagaz-relay doctor"
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["wal_sender_timeout"] = strconv.FormatInt(ex.cfg.WALSenderTimeout.Milliseconds(), 10) + "ms"
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err == nil {
		var results []*pgconn.Result
		results, err = conn.Exec(ctx, `SHOW wal_sender_timeout`).ReadAll()
		_ = conn.Close(ctx)
		if err == nil {
			ex.ok(check, "a replication connection works, wal_sender_timeout %s", results[len(results)-1].Rows[0][0])
			return
		}
	}
	err = store.ConnectCause(err)
	f := Finding{Check: check, Severity: severity, Summary: fmt.Sprintf("no replication connection: %v", err), Why: ex.noStream()}
	var pg *pgconn.PgError
	switch {
	case !errors.As(err, &pg):
		f.Fix = []Step{do("check that nothing in between (a pooler, a proxy) ends replication connections")}
	case pg.Code == "42501":
		f.Fix = []Step{do("as a superuser:"), sql(`ALTER ROLE %s REPLICATION;`, ex.role)}
		var rds bool
		if err := ex.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication')`).Scan(&rds); err == nil && rds {
			f.Fix = []Step{sql(`GRANT rds_replication TO %s;`, ex.role)}
		}
	case pg.Code == "53300":
		f.Fix = []Step{do("free a connection, or raise max_wal_senders (below)")}
	}
	ex.add(f)
}
