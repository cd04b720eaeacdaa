package main

import (
	"io"
	"strings"

	"github.com/sagaz-relay/relay/internal/redact"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/internal/variables"
)

// redacted is the process's own. Settings fill it when they are read; logs, errors, the commands'
// output and HTTP go through it.
var redacted redact.Redactor

// forPeople is a terminal: without secrets, and without what a terminal would obey.
func forPeople(w io.Writer) io.Writer { return redacted.Writer(term.Writer(w)) }

// secrets are the values that are never to be shown, in each form in which a library may have them.
func (s *settings) secrets() []string {
	var list []string
	for _, f := range s.fields() {
		value := showValue(f.Value)
		if items, ok := f.Value.Interface().([]string); ok && f.Secret == variables.Secret {
			for _, item := range items { // secrets, or headers as Name=value
				list = append(list, item)
				if _, header, ok := strings.Cut(item, "="); ok {
					list = append(list, redact.Credentials(header)...)
				}
			}
			continue
		}
		switch {
		case value == "" || f.Secret == variables.NotSecret || f.Secret == variables.SecretPath:
		case f.Names[0] == "OTEL_EXPORTER_OTLP_TRACES_HEADERS":
			for _, pair := range strings.Split(value, ",") {
				_, header, _ := strings.Cut(pair, "=")
				list = append(list, redact.Credentials(header)...)
			}
		case f.Secret == variables.SecretDatabase || strings.Contains(value, "://"):
			list = append(list, redact.Passwords(value)...)
		case f.Secret == variables.Secret:
			list = append(list, value)
		}
	}
	return list
}
