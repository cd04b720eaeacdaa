package sessions

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrDatabaseURL is the error for a connection string that cannot be read.
var ErrDatabaseURL = errors.New("DATABASE_URL: cannot be read: want postgresql://user:password@host:5432/database")

// Address is DATABASE_URL, read.
type Address struct {
	*pgx.ConnConfig
	// Ignored names the parameters that have no effect here, each with the reason.
	Ignored []string
}

// String is the address without the password.
func (a *Address) String() string { return AddressOf(&a.Config) }

// AddressOf is where a configuration leads, without the password.
func AddressOf(c *pgconn.Config) string {
	return fmt.Sprintf("%s/%s as %s", net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port))), c.Database, c.User)
}

// elsewhere are parameters that other clients take for themselves and never send to the server.
// PostgreSQL refuses them (42704).
var elsewhere = map[string]string{
	// libpq
	"keepalives": "the relay always sends keepalives", "gssencmode": "the relay does not use GSSAPI encryption", "gsslib": "the relay does not use GSSAPI",
	"gssdelegation": "the relay does not use GSSAPI", "load_balance_hosts": "hosts are tried in their order", "sslcompression": "TLS does not compress",
	"fallback_application_name": "the relay has a name of its own", "client_certificate_verification": "it is the server's",
	// drivers and poolers
	"pgbouncer": "the relay notices a pooler by itself", "connection_limit": "the relay has no pool", "pool_timeout": "the relay has no pool",
	"pool_size": "the relay has no pool", "max_overflow": "the relay has no pool", "pool_max_conns": "the relay has no pool", "pool_min_conns": "the relay has no pool",
	"pool_max_conn_lifetime": "the relay has no pool", "pool_max_conn_idle_time": "the relay has no pool", "pool_health_check_period": "the relay has no pool",
	"socket_timeout": "the relay has its own timeouts", "sockettimeout": "the relay has its own timeouts", "command_timeout": "the relay has its own timeouts",
	"statement_cache_size": "it is another driver's", "prepared_statement_cache_size": "it is another driver's", "prepared_statements": "it is another driver's",
	"preparethreshold": "it is another driver's", "prepared_statement_name_func": "it is another driver's", "binary_parameters": "it is another driver's",
	"async_fallback": "it is another driver's", "tcpkeepalive": "the relay always sends keepalives", "applicationname": "the relay has a name of its own",
}

// notSupported are parameters whose silent absence would be less safe than what was asked for, with
// the values that ask for nothing.
var notSupported = map[string]struct {
	harmless []string
	instead  string
}{
	"gssencmode":               {[]string{"", "disable", "prefer"}, "use TLS: sslmode=verify-full"},
	"sslcrl":                   {[]string{""}, "leave it out: revocation lists are not looked at"},
	"sslcrldir":                {[]string{""}, "leave it out: revocation lists are not looked at"},
	"requirepeer":              {[]string{""}, "leave it out"},
	"requiressl":               {[]string{"", "0"}, "write sslmode=require"},
	"ssl":                      {[]string{"", "false", "0", "disable", "allow", "prefer"}, "write sslmode=require, or sslmode=verify-full"},
	"sslaccept":                {[]string{"", "accept_invalid_certs"}, "write sslmode=verify-full"},
	"ssl_min_protocol_version": {[]string{"", "TLSv1", "TLSv1.1", "TLSv1.2"}, "leave it out: the relay asks for TLS 1.2 at least"},
	"ssl_max_protocol_version": {[]string{"", "TLSv1.3"}, "leave it out"},
	"hostaddr":                 {[]string{""}, "name the address as host"},
	"schema":                   {[]string{""}, "write search_path=… instead"},
	"currentschema":            {[]string{""}, "write search_path=… instead"},
}

// Parse reads DATABASE_URL. Its errors have no password and no other part of a value. Parameters
// that libpq, other drivers or poolers take for themselves are left out: the server would refuse
// the session because of them.
func Parse(databaseURL string) (*Address, error) {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, withoutDSN(err)
	}
	switch {
	case strings.Contains(cfg.Host, "@"):
		// The password ends at its first @ then, and the rest of it would be in every message that
		// names the host.
		return nil, errors.New("DATABASE_URL: the host has an @: want reserved characters in the password percent-encoded (@ as %40, / as %2F, : as %3A)")
	case hasOddName(cfg.RuntimeParams):
		// A URL that lost its beginning. Up to its first = it is read as the name of a setting, and
		// the host is the default.
		return nil, errors.New("DATABASE_URL: is neither a URL nor made of keyword=value: want postgresql://user:password@host:5432/database")
	}
	a := &Address{ConnConfig: cfg}
	a.resetQueryMode()
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	// The death of the peer has to show within seconds, not after the kernel's two hours.
	alive := net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: 2 * time.Second, Count: 3}
	var errs []error
	for name, value := range cfg.RuntimeParams {
		lower := strings.ToLower(name)
		if unsafe, is := notSupported[lower]; is {
			if !slices.Contains(unsafe.harmless, value) {
				errs = append(errs, fmt.Errorf("DATABASE_URL: parameter %s is not supported: %s", lower, unsafe.instead))
			}
			delete(cfg.RuntimeParams, name)
			continue
		}
		n, err := strconv.Atoi(value)
		switch lower {
		case "keepalives_idle", "keepalives_interval", "keepalives_count":
			delete(cfg.RuntimeParams, name)
			if err != nil || n < 0 {
				errs = append(errs, fmt.Errorf("DATABASE_URL: parameter %s: want a whole number", lower))
				continue
			}
			if n == 0 { // the system's default, as in libpq
				continue
			}
			switch lower {
			case "keepalives_idle":
				alive.Idle = time.Duration(n) * time.Second
			case "keepalives_interval":
				alive.Interval = time.Duration(n) * time.Second
			default:
				alive.Count = n
			}
			continue
		}
		if why, is := elsewhere[lower]; is {
			delete(cfg.RuntimeParams, name)
			a.Ignored = append(a.Ignored, lower+": "+why)
		}
	}
	slices.Sort(a.Ignored)
	if len(errs) > 0 {
		slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return nil, errors.Join(errs...)
	}
	cfg.DialFunc = (&net.Dialer{KeepAliveConfig: alive}).DialContext
	return a, nil
}

// resetQueryMode undoes what the string sets about how statements are sent, which is pgx's own and
// gone from RuntimeParams. Other modes cannot hand over lists of ids, and batches in mode exec are
// not seen by the qualifier (qualify.go).
func (a *Address) resetQueryMode() {
	const mode, capacity = pgx.QueryExecModeCacheStatement, 512
	if a.DefaultQueryExecMode != mode {
		a.Ignored = append(a.Ignored, "default_query_exec_mode: the relay has its own")
	}
	if a.StatementCacheCapacity != capacity || a.DescriptionCacheCapacity != capacity {
		a.Ignored = append(a.Ignored, "statement_cache_capacity, description_cache_capacity: the relay has its own")
	}
	// A connection has room for all statements that it has, and no more: it pays for the room.
	a.DefaultQueryExecMode, a.StatementCacheCapacity, a.DescriptionCacheCapacity = mode, 128, 0
}

// withoutDSN drops the connection string that pgconn's parse error quotes: it has the password.
func withoutDSN(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		// What the cause quotes is a piece of the string: of a password with a space in it, for
		// instance.
		if cause := parse.Unwrap(); cause != nil && !strings.ContainsAny(cause.Error(), `"'`+"`") {
			return fmt.Errorf("DATABASE_URL: cannot be read (%w): want postgresql://user:password@host:5432/database", cause)
		}
	}
	return ErrDatabaseURL
}

// hasOddName reports whether one of the settings has a name that no setting of PostgreSQL has.
func hasOddName(params map[string]string) bool {
	for name := range params {
		if strings.ContainsFunc(name, func(r rune) bool {
			return r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) {
			return true
		}
	}
	return false
}
