package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/sessions"
	"github.com/sagaz-relay/relay/relay/store"
)

// newestServer is tested, as are those from sessions.OldestServer on.
const newestServer = 18

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
	case ex.version > newestServer:
		ex.add(Finding{Check: check, Severity: Note, Summary: fmt.Sprintf("%s: tested are %d to %d", where, sessions.OldestServer, newestServer)})
	default:
		ex.ok(check, "%s", where)
	}
}

// refused matches the server's message that no line of pg_hba.conf lets us in.
var refused = regexp.MustCompile(`no pg_hba.conf entry for host "([^"]*)", user "([^"]*)", database "([^"]*)"`)

// hostLine is the line of pg_hba.conf that is missing, if that is the server's message.
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

// tooSkewed is the difference between two clocks that is worth reporting.
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
		Why: "Applications set created_at by their clocks, by which rows from before the slot are put in order; lag, age and retention are computed wrong.",
		Fix: []Step{do("let both follow one time source: chronyc tracking, or timedatectl timesync-status, shows which one is off")},
	})
}

// checkPooler looks for something between us and PostgreSQL that shares out connections. It is
// noticed because it does not take settings at the start of a session, or because the backend is
// not the one that it named.
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
	// Keepalive settings read 0 on a Unix socket.
	if sign == "" && !strings.HasPrefix(cfg.Host, "/") {
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
			ex.unknown(check, sessions.Cause(err))
			return
		case got != idle:
			sign = "settings at the start of a session are lost"
		}
	}
	switch stream, _ := ex.streaming(); {
	case sign == "":
		ex.ok(check, "none in between")
	case !stream:
		ex.add(Finding{Check: check, Severity: Note, Summary: "one is in between: " + sign, Why: "With RELAY_MODE=polling that works; a dead relay is replaced after RELAY_LEASE_TTL only."})
	default:
		ex.refuses(check, sessions.Pooler(errors.New(sign)))
	}
}

func (ex *exam) checkWALLevel(ctx context.Context) {
	const check = "wal_level"
	stream, _ := ex.streaming()
	var level string
	if !stream || !ex.ask(ctx, check, `SELECT current_setting('wal_level')`, nil, &level) {
		return
	}
	if fault := cdc.WALLevel(level); fault != nil {
		ex.refuses(check, fault)
		return
	}
	ex.ok(check, "logical")
}
