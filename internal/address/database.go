package address

import (
	"errors"
	"regexp"
	"slices"
	"strings"
)

const databaseForm = "want postgresql://user:password@host:5432/database"

// Parameters of libpq's connection strings, as of PostgreSQL 18, and of pgx.
var parameters = strings.Fields(`host hostaddr port dbname database user password passfile require_auth channel_binding connect_timeout
	client_encoding options application_name fallback_application_name keepalives keepalives_idle keepalives_interval
	keepalives_count tcp_user_timeout replication gssencmode sslmode requiressl sslnegotiation sslcompression sslcert sslkey
	sslkeylogfile sslpassword sslcertmode sslrootcert sslcrl sslcrldir sslsni requirepeer ssl_min_protocol_version
	ssl_max_protocol_version min_protocol_version max_protocol_version krbsrvname gsslib gssdelegation service servicefile
	target_session_attrs load_balance_hosts scram_client_key scram_server_key oauth_issuer oauth_client_id
	oauth_client_secret oauth_scope DateStyle TimeZone IntervalStyle`)

// setting matches the names of the server's own settings, and of those that poolers take.
var setting = regexp.MustCompile(`^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$`)

func parameter(name string) bool {
	return slices.Contains(parameters, name) || setting.MatchString(name)
}

// Database checks a connection string in either of libpq's forms, and an empty one, which sets
// nothing.
func Database(s string) error {
	if s == "" {
		return nil
	}
	for _, scheme := range []string{"postgresql://", "postgres://"} {
		if rest, ok := strings.CutPrefix(s, scheme); ok {
			p, err := parse(rest, parameter)
			if err != nil {
				return err
			}
			if strings.ContainsAny(unescape(p.path), "@:/?#") {
				return errDatabase
			}
			return nil
		}
	}
	if strings.Contains(s, "://") && !strings.Contains(s, "=") || !strings.Contains(s, "=") {
		return errors.New("is neither a URL nor made of keyword=value: " + databaseForm)
	}
	return keywords(s)
}

var errKeywords = errors.New("is neither a URL nor made of keyword=value with spaces between: " + databaseForm + `, or "host=… user=… password='…' dbname=…" with ' and \ in a value as \' and \\`)

// keywords checks keyword=value pairs as libpq reads them.
func keywords(s string) error {
	for s = strings.TrimLeft(s, " \t\r\n"); s != ""; s = strings.TrimLeft(s, " \t\r\n") {
		name, rest, ok := strings.Cut(s, "=")
		name = strings.TrimRight(name, " \t\r\n")
		if !ok || !parameter(name) {
			return errKeywords
		}
		var value string
		if value, s, ok = keywordValue(strings.TrimLeft(rest, " \t\r\n")); !ok {
			return errKeywords
		}
		if err := databasePart(name, value); err != nil {
			return err
		}
	}
	return nil
}

// keywordValue reads one value, quoted or not, and what is left behind it.
func keywordValue(s string) (value, rest string, ok bool) {
	var b strings.Builder
	quoted := strings.HasPrefix(s, "'")
	if quoted {
		s = s[1:]
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quoted && c == '\'':
			// A value ends at its quote: what follows it directly is the rest of a password with a
			// quote in it.
			if i+1 < len(s) && !strings.ContainsRune(" \t\r\n", rune(s[i+1])) {
				return "", "", false
			}
			return b.String(), s[i+1:], true
		case !quoted && strings.ContainsRune(" \t\r\n", rune(c)):
			return b.String(), s[i:], true
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), "", !quoted
}

// databasePart checks a value that is shown in errors and logs.
func databasePart(name, value string) error {
	switch name {
	case "host", "hostaddr":
		for _, host := range strings.Split(value, ",") {
			if err := Host(host); err != nil {
				return err
			}
		}
	case "port":
		for _, port := range strings.Split(value, ",") {
			if port == "" {
				continue
			}
			if err := Port(port); err != nil {
				return err
			}
		}
	case "dbname", "database":
		if strings.ContainsAny(value, "@:/?#=") {
			return errDatabase
		}
	case "user":
		if strings.Contains(value, ":") {
			return errUser
		}
	}
	return nil
}

// Resolved checks what a connection string becomes with the environment (PGHOST, …), a service file
// and the defaults.
func Resolved(hosts []string, user, database string) error {
	for _, host := range hosts {
		if err := Host(host); err != nil {
			return err
		}
	}
	if err := databasePart("user", user); err != nil {
		return err
	}
	return databasePart("dbname", database)
}
