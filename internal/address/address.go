// Package address reads addresses that may hold a password: of databases, brokers and collectors.
//
// The libraries that connect accept more than what is meant as an address. The password of
// postgresql://u:12/SECRET@host/db ends at its first slash for them. What is left becomes the name
// of a database, is in errors and logs, and is sent to a host that was not meant. So every address
// is checked by a stricter grammar when the settings are read. An error names the rule and never
// repeats a part of the address, because it is not known where in it the password is.
package address

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
)

const encoded = "reserved characters in user and password percent-encoded (@ as %40, / as %2F, : as %3A, ? as %3F, # as %23, % as %25)"

// Errors of addresses; each is a rule.
var (
	errSpace     = errors.New("it has a space, line break or control character: want it percent-encoded (a space is %20)")
	errAt        = errors.New("an @ is where none belongs: want " + encoded)
	errFragment  = errors.New("want no # in it: " + encoded)
	errPercent   = errors.New("a % is not followed by two hexadecimal digits: want " + encoded)
	errPort      = errors.New("what is behind the host's colon is no port: want a number from 1 to 65535, and " + encoded)
	errHost      = errors.New("the host is no name and no IP address: want letters, digits, dots and hyphens, and " + encoded)
	errUser      = errors.New("the user has a colon in it: want user:password, with " + encoded)
	errParameter = errors.New("what is behind the ? is not name=value, with & between them: want " + encoded)
	errDatabase  = errors.New("the name of the database has one of @ : / ? #: want " + encoded)
)

// parse checks the form scheme://user:password@host:port,host:port/path?name=value and returns its
// parts. The scheme is the caller's to check. parameter returns whether the query may have a name.
func parse(rest string, parameter func(name string) bool) (*parts, error) {
	var p parts
	if strings.ContainsFunc(rest, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, errSpace
	}
	if strings.Contains(rest, "#") {
		return nil, errFragment
	}
	if _, err := url.PathUnescape(rest); err != nil {
		return nil, errPercent
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority = rest[:i]
		tail := rest[i:]
		if strings.Contains(tail, "@") {
			return nil, errAt
		}
		p.path, p.query, _ = strings.Cut(tail, "?")
		p.path = strings.TrimPrefix(p.path, "/")
	}
	switch strings.Count(authority, "@") {
	case 0:
	case 1:
		var userinfo string
		userinfo, authority, _ = strings.Cut(authority, "@")
		user, password, _ := strings.Cut(userinfo, ":")
		if strings.Contains(password, ":") || strings.Contains(unescape(user), ":") {
			return nil, errUser
		}
		p.user, p.password = unescape(user), unescape(password)
	default:
		return nil, errAt
	}
	for _, hostport := range strings.Split(authority, ",") {
		host, err := hostPort(hostport)
		if err != nil {
			return nil, err
		}
		p.hosts = append(p.hosts, host)
	}
	if p.query != "" {
		for _, pair := range strings.Split(p.query, "&") {
			name, _, ok := strings.Cut(pair, "=")
			if !ok || !parameter(unescape(name)) {
				return nil, errParameter
			}
		}
	}
	return &p, nil
}

type parts struct {
	user, password string
	hosts          []string // may be empty
	path, query    string
}

func unescape(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

// hostPort checks host, host:port, [ipv6]:port, or nothing, and returns the host.
func hostPort(s string) (host string, err error) {
	port, hasPort := "", false
	if rest, ok := strings.CutPrefix(s, "["); ok {
		end := strings.IndexByte(rest, ']')
		if end < 0 {
			return "", errHost
		}
		ip, _, _ := strings.Cut(rest[:end], "%") // a zone
		if net.ParseIP(ip) == nil {
			return "", errHost
		}
		host = rest[:end]
		if port, hasPort = strings.CutPrefix(rest[end+1:], ":"); !hasPort && port != "" {
			return "", errHost
		}
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		if err := Host(unescape(host)); err != nil {
			return "", err
		}
	}
	if hasPort && port != "" {
		return host, Port(port)
	}
	return host, nil
}

// Host checks a host's name, an IP address, or the directory of a Unix socket; an empty one is
// right, too.
func Host(host string) error {
	if strings.HasPrefix(host, "/") {
		if strings.ContainsAny(host, "@:?#") || strings.ContainsFunc(host, func(r rune) bool { return r < ' ' }) {
			return errHost
		}
		return nil
	}
	if ip, _, _ := strings.Cut(host, "%"); net.ParseIP(ip) != nil {
		return nil
	}
	if len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_') && r < 0x80
	}) {
		return errHost
	}
	return nil
}

// Port checks a port's number.
func Port(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errPort
	}
	return nil
}

// Brokers checks a list of host:port.
func Brokers(list []string) error {
	for _, s := range list {
		s = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(s), "kafka://"), "/")
		switch {
		case strings.HasPrefix(s, "amqp://"), strings.HasPrefix(s, "amqps://"):
			return errors.New("starts with amqp://, which is RabbitMQ's: want host:port, several with commas between")
		case strings.Contains(s, "://"):
			return errors.New("want host:port, several with commas between, or kafka://host:port")
		case strings.Contains(s, "@"):
			return errors.New("carries a user or a password: want host:port only, and KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")
		case net.ParseIP(s) != nil: // IPv6 without a port
		default:
			if _, err := hostPort(s); err != nil {
				return errors.New("want host:port, several with commas between: the host a name or an IP address, the port from 1 to 65535")
			}
		}
	}
	return nil
}

// Hosts checks a list of hosts, each with or without a port. None may carry a user, a path or a scheme.
func Hosts(list []string) error {
	for _, s := range list {
		switch s = strings.TrimSpace(s); {
		case s == "":
			return errors.New("a host is missing: want host or host:port, several with commas between")
		case strings.ContainsAny(s, "@/"):
			return errors.New("carries a user, a path or a scheme: want host or host:port, several with commas between")
		case net.ParseIP(s) != nil: // IPv6 without a port
		default:
			if host, err := hostPort(s); err != nil || host == "" {
				return errors.New("want host or host:port, several with commas between: the host a name or an IP address, the port from 1 to 65535")
			}
		}
	}
	return nil
}

// AMQP checks amqp://user:password@host:port/vhost, or amqps.
func AMQP(s string) error {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme != "amqp" && scheme != "amqps" {
		return errors.New("want it to begin with amqp:// or amqps://")
	}
	p, err := parse(rest, setting.MatchString)
	switch {
	case err != nil:
		return err
	case len(p.hosts) > 1:
		return errors.New("want one host: the other nodes of its cluster belong into RELAY_RABBITMQ_HOSTS")
	case strings.ContainsAny(p.path, "/:"):
		return errors.New("the vhost has a / or a colon in it: want it percent-encoded, and " + encoded)
	}
	return nil
}

// begins reads an address that has one of two schemes. rest is what is behind the scheme.
func begins(s, plain, encrypted string, parameter func(name string) bool) (p *parts, rest string, err error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme != plain && scheme != encrypted {
		return nil, rest, errors.New("want it to begin with " + plain + ":// or " + encrypted + "://")
	}
	p, err = parse(rest, parameter)
	return p, rest, err
}

// HTTP checks http://host:port/path, or https: an address that carries no user, password or query.
func HTTP(s string) error {
	p, rest, err := begins(s, "http", "https", func(string) bool { return true })
	switch {
	case err != nil:
		return err
	case strings.Contains(rest, "@"), p.query != "":
		return errors.New("want no user, password or query in it")
	case len(p.hosts) > 1 || p.hosts[0] == "":
		return errHost
	}
	return nil
}

// Webhook checks http://user:password@host:port/path?name=value, or https, of which all but the host
// may be missing.
func Webhook(s string) error {
	p, _, err := begins(s, "http", "https", func(string) bool { return true })
	switch {
	case err != nil:
		return err
	case len(p.hosts) > 1 || p.hosts[0] == "":
		return errHost
	}
	return nil
}

// NATS checks a list of nats://user:password@host:port, or tls. A bare host:port is right, too.
func NATS(list []string) error {
	if len(list) == 0 {
		return errors.New("want nats://host:4222, several with commas between")
	}
	schemes := make(map[string]bool)
	for _, s := range list {
		scheme, rest, ok := strings.Cut(s, "://")
		if !ok {
			scheme, rest = "nats", s
		}
		if scheme != "nats" && scheme != "tls" {
			return errors.New("want each address to begin with nats:// or tls://")
		}
		schemes[scheme] = true
		p, err := parse(rest, func(string) bool { return false })
		switch {
		case err != nil:
			return err
		case p.path != "":
			return errors.New("want nothing behind the host and its port")
		case p.hosts[0] == "":
			return errHost
		}
	}
	if len(schemes) > 1 {
		return errors.New("want all addresses to begin with nats://, or all with tls://")
	}
	return nil
}

// Redis checks redis://user:password@host:port/number, or rediss.
func Redis(s string) error {
	p, _, err := begins(s, "redis", "rediss", func(string) bool { return false })
	switch {
	case err != nil:
		return err
	case len(p.hosts) > 1 || p.hosts[0] == "":
		return errHost
	}
	if p.path != "" {
		if n, err := strconv.ParseUint(p.path, 10, 16); err != nil || strconv.FormatUint(n, 10) != p.path {
			return errors.New("what is behind the host's slash is no number of a database: want 0, or another number, and " + encoded)
		}
	}
	return nil
}
