package sessions

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/relay"
)

// What libpq of PostgreSQL 17 knows (docs, "Parameter Key Words") and what other clients write
// into the same URL: none of it reaches a server that would refuse the session because of it.
func TestParametersOfOtherClients(t *testing.T) {
	const refused, ignored, taken = "refused", "ignored", "taken"
	// Of what is sent to the server, what it knows as a setting.
	settings := []string{"application_name", "client_encoding", "options", "tcp_user_timeout"}
	for _, tt := range []struct{ parameter, value, want string }{
		{"connect_timeout", "5", taken},
		{"client_encoding", "LATIN1", taken},
		{"options", "-c%20geqo%3Doff", taken},
		{"application_name", "x", taken},
		{"fallback_application_name", "x", ignored},
		{"keepalives", "1", ignored},
		{"keepalives_idle", "30", taken},
		{"keepalives_interval", "0", taken},
		{"keepalives_count", "3", taken},
		{"keepalives_idle", "SECRET", refused},
		{"keepalives_count", "-1", refused},
		{"tcp_user_timeout", "1000", taken},
		{"gssencmode", "prefer", taken},
		{"gssencmode", "require", refused},
		{"gsslib", "gssapi", ignored},
		{"gssdelegation", "0", ignored},
		{"sslmode", "disable", taken},
		{"sslcompression", "0", ignored},
		{"sslnegotiation", "postgres", taken},
		{"sslsni", "0", taken},
		{"sslcrl", "/SECRET", refused},
		{"sslcrldir", "/SECRET", refused},
		{"requiressl", "1", refused},
		{"requirepeer", "SECRET", refused},
		{"ssl_min_protocol_version", "TLSv1.2", taken},
		{"ssl_min_protocol_version", "TLSv1.3", refused},
		{"ssl_max_protocol_version", "TLSv1.2", refused},
		{"target_session_attrs", "read-write", taken},
		{"load_balance_hosts", "random", ignored},
		{"hostaddr", "192.0.2.1", refused},
		{"pgbouncer", "true", ignored},
		{"schema", "SECRET", refused},
		{"currentSchema", "SECRET", refused},
		{"connection_limit", "3", ignored},
		{"pool_timeout", "3", ignored},
		{"pool_max_conns", "3", ignored},
		{"prepareThreshold", "0", ignored},
		{"ssl", "true", taken},
		{"ssl", "false", taken},
		{"command_timeout", "3", ignored},
		{"statement_cache_size", "0", ignored},
		{"default_query_exec_mode", "exec", ignored},
		{"ApplicationName", "x", ignored},
	} {
		t.Run(tt.parameter+"="+tt.value, func(t *testing.T) {
			a, err := Parse("postgresql://u:hidden@localhost/db?" + tt.parameter + "=" + tt.value)
			if tt.want == refused {
				if err == nil || !strings.Contains(err.Error(), strings.ToLower(tt.parameter)) {
					t.Fatalf("got %v, want an error that names it", err)
				}
				if strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "hidden") {
					t.Errorf("the error has a value: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range slices.Sorted(maps.Keys(a.RuntimeParams)) {
				if !slices.Contains(settings, name) {
					t.Errorf("the server is asked for %s", name)
				}
			}
			if got := len(a.Ignored) > 0; got != (tt.want == ignored) {
				t.Errorf("ignored: %v, want %s", a.Ignored, tt.want)
			}
		})
	}
}

// A server refuses a session for a fault that a person has to fix, or for one that is waited out.
// The former would be the same at the next try. The classes are those of PostgreSQL's appendix
// "Error Codes".
func TestRefused(t *testing.T) {
	person := []string{
		"28000", "28P01", "28999", "3D000", "42501", "42704", "42601", "42P02", "22023", "22P02", "55P02",
		"0A000",
	}
	transient := []string{
		"", "08000", "08001", "08003", "08004", "08006", "08P01", "25006", "40001", "40P01", "53000",
		"53100", "53200", "53300", "53400", "55000", "55006", "55P03", "57000", "57014", "57P01", "57P02",
		"57P03", "57P04", "57P05", "58000", "58030", "58P01", "XX000", "XX001", "XX002",
	}
	ask := func(state, message string) (*relay.SetupError, error) {
		in := fmt.Errorf("connect: %w", &pgconn.PgError{Code: state, Message: message})
		out := Refused(in)
		var setup *relay.SetupError
		if !errors.As(out, &setup) {
			if !errors.Is(out, in) {
				t.Errorf("%s: got another error: %v", state, out)
			}
			return nil, out
		}
		return setup, out
	}
	for _, state := range person {
		setup, err := ask(state, "no")
		switch {
		case setup == nil:
			t.Errorf("%s is waited out: %v", state, err)
		case !strings.HasPrefix(setup.Problem, "DATABASE_URL: ") || setup.Fix == "" || setup.Streaming:
			t.Errorf("%s: %+v", state, setup)
		case !errors.Is(Refused(err), err):
			t.Errorf("%s: asked again, it is another error", state)
		}
	}
	for _, state := range transient {
		if setup, err := ask(state, "no"); setup != nil {
			t.Errorf("%s is left to a person: %v", state, err)
		}
	}
	if setup, err := ask("08P01", "unsupported startup parameter: x"); setup == nil {
		t.Errorf("what PgBouncer does not take is waited out: %v", err)
	}
}
