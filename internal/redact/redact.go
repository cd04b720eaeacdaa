// Package redact takes the secrets that a process was given out of what it writes.
package redact

import (
	"encoding/json"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// Redactor replaces the secrets that this process was given in what it writes. Nothing should print
// one: addresses are checked when they are read, errors are made without them. This is for texts of
// libraries that we do not know.
type Redactor struct {
	replacer atomic.Pointer[strings.Replacer]
}

// Hidden is in the place of a secret.
const Hidden = "(hidden)"

// userinfo is what is between the scheme and the last @ of a URL in a text.
var userinfo = regexp.MustCompile(`\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s"']*@`)

// shownForms are how our own texts write the form of an address, and the default of RABBITMQ_URL.
var shownForms = []string{"://user:password@", "://guest:guest@"}

// Know sets what is to be hidden.
func (r *Redactor) Know(secrets []string) {
	var pairs []string
	for _, s := range secrets {
		if !worthHiding(s) {
			continue
		}
		forms := []string{s, url.PathEscape(s), url.QueryEscape(s), url.UserPassword("", s).String()[1:]}
		if quoted, err := json.Marshal(s); err == nil {
			forms = append(forms, string(quoted[1:len(quoted)-1]))
		}
		slices.Sort(forms)
		for _, form := range slices.Compact(forms) {
			pairs = append(pairs, form, Hidden)
		}
	}
	if len(pairs) == 0 {
		r.replacer.Store(nil)
		return
	}
	r.replacer.Store(strings.NewReplacer(pairs...))
}

// worthHiding leaves out what occurs in ordinary text: to hide the password "sagaz" would garble
// every line, and give it away.
func worthHiding(s string) bool {
	if len(s) < 6 {
		return false
	}
	lower := strings.Trim(s, "abcdefghijklmnopqrstuvwxyz-_") == ""
	return !lower || len(s) >= 16
}

// Text returns s without secrets.
func (r *Redactor) Text(s string) string {
	if replacer := r.replacer.Load(); replacer != nil {
		s = replacer.Replace(s)
	}
	if !strings.Contains(s, "@") {
		return s
	}
	return userinfo.ReplaceAllStringFunc(s, func(found string) string {
		if slices.ContainsFunc(shownForms, func(form string) bool { return strings.HasSuffix(found, form) && strings.Count(found, "://") == 1 }) {
			return found
		}
		scheme, _, _ := strings.Cut(found, "://")
		return scheme + "://" + Hidden + "@"
	})
}

// Bytes is Text for HTTP's side.
func (r *Redactor) Bytes(b []byte) []byte { return []byte(r.Text(string(b))) }

// Writer redacts each Write by itself: logs and tables are written whole.
func (r *Redactor) Writer(w io.Writer) io.Writer { return &redacting{r, w} }

type redacting struct {
	r *Redactor
	w io.Writer
}

func (w *redacting) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.w, w.r.Text(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Credentials are a header's value as it is and decoded, and what follows Bearer or Basic in it.
func Credentials(header string) []string {
	list := []string{strings.TrimSpace(header)}
	if decoded, err := url.PathUnescape(list[0]); err == nil {
		list = append(list, decoded)
	}
	for _, value := range slices.Clone(list) {
		if _, credentials, ok := strings.Cut(value, " "); ok {
			list = append(list, strings.TrimSpace(credentials))
		}
	}
	return list
}

// Passwords are those of a URL or of a connection string of PostgreSQL, as they are there and
// decoded.
func Passwords(address string) []string {
	var list []string
	if _, rest, ok := strings.Cut(address, "://"); ok {
		if user, _, ok := strings.Cut(rest, "@"); ok {
			_, password, _ := strings.Cut(user, ":")
			list = append(list, password)
			if decoded, err := url.PathUnescape(password); err == nil {
				list = append(list, decoded)
			}
		}
	}
	if cfg, err := pgconn.ParseConfig(address); err == nil && !strings.HasPrefix(address, "amqp") {
		list = append(list, cfg.Password) // also of a service file, a password file and PGPASSWORD
	}
	return list
}
