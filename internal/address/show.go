package address

import (
	"net/url"
	"strings"
)

// Hidden takes the place of what is not shown.
const Hidden = "(set)"

// Show returns an address as it may be shown: a plain one as it is, a URL of the strict form
// without user, password and query, and of anything else only that it is set.
func Show(s string) string {
	if s == "" {
		return ""
	}
	list := strings.Split(s, ",")
	for i, one := range list {
		scheme, rest, isURL := strings.Cut(one, "://")
		if !isURL {
			if strings.Contains(one, "@") || Brokers([]string{one}) != nil {
				return Hidden
			}
			continue
		}
		p, err := parse(rest, func(string) bool { return true })
		if err != nil || strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyz") != "" {
			return Hidden
		}
		if p.query != "" || strings.Contains(rest, "@") {
			u, err := url.Parse(one)
			if err != nil {
				return Hidden
			}
			list[i] = (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
		}
	}
	return strings.Join(list, ",")
}

// Argument quotes what somebody typed on a command line, unless it may be an address with a
// password.
func Argument(s string) string {
	if strings.Contains(s, "://") || strings.Contains(s, "@") || strings.Contains(strings.ToLower(s), "password") {
		return "an address (not shown)"
	}
	return s
}

// Path shows the name of a file, unless it is something else in the place of one: an address, or
// the content of the file itself.
func Path(s string) string {
	if strings.Contains(s, "://") || strings.ContainsAny(s, "@\n\r") || len(s) > 1024 || strings.Contains(s, "-----BEGIN") {
		return Hidden
	}
	return s
}
