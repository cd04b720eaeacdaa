package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/internal/variables"
	"github.com/sagaz-relay/relay/relay/admin"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/engine"
	"github.com/sagaz-relay/relay/relay/route"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/traces"
	"github.com/sagaz-relay/relay/relay/watch"
)

// variable is one setting as --help and docs/settings.md show it.
type variable struct {
	names    []string
	fallback string
	value    string // in force, or the default
	shown    string // the same without what may be secret
	secret   bool
}

// defaultSettings are those of a process without any variable.
func defaultSettings() *settings {
	s := &settings{
		program: defaultProgramConfig(),
		admin:   admin.DefaultConfig(),
		relay:   engine.DefaultConfig(),
		encode:  encode.DefaultConfig(),
		route:   route.DefaultConfig(),
		watch:   watch.DefaultConfig(),
		cdc:     cdc.DefaultConfig(),
		store:   store.DefaultConfig(),
		traces:  traces.DefaultConfig(),
		sinks:   make(map[string]any),
		named:   make(map[string]*sinkKind),
	}
	for _, k := range sinkKinds {
		s.sinks[k.name] = k.config()
	}
	return s
}

// configs are pointers to the rooms' structs.
func (s *settings) configs() []any {
	configs := []any{&s.cdc, &s.program, &s.admin, &s.relay, &s.encode, &s.route, &s.watch, &s.store}
	for _, k := range sinkKinds {
		configs = append(configs, s.sinks[k.name])
	}
	return append(configs, &s.traces)
}

// fields are all settings, those of named sinks last and under their own names. One that several
// structs have is there several times.
func (s *settings) fields() []variables.Field {
	var all []variables.Field
	for _, c := range s.configs() {
		all = append(all, variables.Fields(c)...)
	}
	for _, name := range s.program.NamedSinks {
		if kind := s.named[name]; kind != nil {
			room := &sinkRoom{Kind: kind.name}
			all = append(all, variables.Renamed(variables.Fields(room), func(variable string) string { return variables.SinkPrefix(name) + variable })...)
			all = append(all, s.fieldsOf(name)...)
		}
	}
	return all
}

// allVariables lists every setting once, with its default, in the order of the structs.
func allVariables() []variable { return defaultSettings().variables() }

// variables lists every setting once, with its value, in the order of the structs.
func (s *settings) variables() []variable {
	var all []variable
	seen := make(map[string]bool)
	for _, f := range s.fields() {
		if seen[f.Names[0]] {
			continue
		}
		seen[f.Names[0]] = true
		value := showValue(f.Value)
		all = append(all, variable{
			names: f.Names, fallback: f.Fallback, value: value, shown: f.Show(value), secret: f.Secret == variables.Secret || f.Secret == variables.SecretDatabase,
		})
	}
	return all
}

func showValue(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case []string:
		return strings.Join(x, ",")
	case time.Duration:
		return x.String()
	default:
		return fmt.Sprint(x)
	}
}

func describeVariables() []string {
	var lines []string
	for _, v := range allVariables() {
		lines = append(lines, "  "+v.line())
	}
	return append(lines, "", "\"sagaz-relay settings NAME\" explains a setting, docs/settings.md all of them.")
}

// line has a setting's names and value.
func (v *variable) line() string {
	line := strings.Join(v.names, " or ")
	if v.fallback != "" {
		line += " (else " + v.fallback + ")"
	}
	if v.value != "" {
		line += "  [" + v.value + "]"
	}
	return line
}
