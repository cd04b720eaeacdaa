package main

import (
	"encoding/json"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/internal/term"
)

// redactor replaces the secrets that this process was given in what it writes. Nothing should print
// one: addresses are checked when they are read, errors are made without them. This is for texts of
// libraries that we do not know.
type redactor struct {
	replacer atomic.Pointer[strings.Replacer]
}

// redacted is the process's own. Settings fill it when they are read; logs, errors, the commands'
// output and HTTP go through it.
var redacted redactor

const hidden = "(hidden)"

// userinfo is what is between the scheme and the last @ of a URL in a text.
var userinfo = regexp.MustCompile(`\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s"']*@`)

// shownForms are how our own texts write the form of an address, and the default of RABBITMQ_URL.
var shownForms = []string{"://user:password@", "://guest:guest@"}

// know sets what is to be hidden.
func (r *redactor) know(secrets []string) {
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
			pairs = append(pairs, form, hidden)
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

// text returns s without secrets.
func (r *redactor) text(s string) string {
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
		return scheme + "://" + hidden + "@"
	})
}

// bytes is text for HTTP's side.
func (r *redactor) bytes(b []byte) []byte { return []byte(r.text(string(b))) }

// writer redacts each Write by itself: logs and tables are written whole.
func (r *redactor) writer(w io.Writer) io.Writer { return &redacting{r, w} }

type redacting struct {
	r *redactor
	w io.Writer
}

func (w *redacting) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.w, w.r.text(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// forPeople is a terminal: without secrets, and without what a terminal would obey.
func forPeople(w io.Writer) io.Writer { return redacted.writer(term.Writer(w)) }

// secrets are the values that are never to be shown, in each form in which a library may have them.
func (s *settings) secrets() []string {
	var list []string
	for _, c := range s.configs() {
		for _, f := range fieldsOf(c) {
			value := showValue(f.value)
			switch {
			case value == "" || f.secret == notSecret || f.secret == secretPath:
			case f.names[0] == "OTEL_EXPORTER_OTLP_TRACES_HEADERS":
				for _, pair := range strings.Split(value, ",") {
					_, header, _ := strings.Cut(pair, "=")
					list = append(list, authorization(header)...)
				}
			case f.secret == secretURL || strings.Contains(value, "://"):
				list = append(list, passwordsOf(value)...)
			case f.secret == secretTrue:
				list = append(list, value)
			}
		}
	}
	return list
}

// authorization is a header's value as it is and decoded, and what follows Bearer or Basic in it.
func authorization(header string) []string {
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

// passwordsOf are those of a URL or of a connection string of PostgreSQL, as they are there and
// decoded.
func passwordsOf(address string) []string {
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
