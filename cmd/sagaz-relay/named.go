package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/variables"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/file"
	"github.com/sagaz-relay/relay/sinks/kafka"
)

// A sink of BROKER_TYPE is called as its kind is. One of RELAY_SINKS has a name of its own, and the
// variables of its kind under names of its own (internal/variables/named.go). To the rest of the
// program both are the same: a name, a kind and a Config.

// sinkRoom is the one setting that says of what kind a named sink is.
type sinkRoom struct {
	Kind string `env:"KIND"`
}

// nameSinks reads the settings of the sinks in RELAY_SINKS.
func (s *settings) nameSinks(v *variables.Values) {
	fail := func(format string, args ...any) { s.errs = append(s.errs, fmt.Errorf(format, args...)) }
	v.Hint = func(name string) (text string, all bool) {
		if !strings.HasPrefix(name, "RELAY_SINK_") {
			return "", false
		}
		for named := range s.named {
			switch own, is := strings.CutPrefix(name, variables.SinkPrefix(named)); {
			case is && (own == "TOPIC" || own == "ROUTING_KEY"):
				return ": a sink's own topic or routing key is set by a rule (RELAY_ROUTES, docs/routes.md)", true
			case is:
				return "", false
			}
		}
		return ": no sink that " + variables.NamedSinks + " lists has settings that begin so", false
	}
	if len(s.program.NamedSinks) == 0 {
		return
	}
	if v.Sources["BROKER_TYPE"] == "" {
		s.program.Sinks = nil
	}
	for i, name := range s.program.NamedSinks {
		if err := variables.CheckSinkName(name); err != nil {
			s.errs = append(s.errs, err)
			continue
		}
		prefix := variables.SinkPrefix(name)
		switch {
		case slices.Contains(s.program.NamedSinks[:i], name):
			fail("%s: %s occurs twice", variables.NamedSinks, name)
			continue
		case sinkKindOf(name) != nil || name == relay.MarkSink:
			v.Claim(prefix)
			fail("%s: %s is what BROKER_TYPE calls its own sink: want another name", variables.NamedSinks, name)
			continue
		}
		if other := slices.IndexFunc(s.program.NamedSinks[:i], func(o string) bool {
			return strings.HasPrefix(o, name+"-") || strings.HasPrefix(name, o+"-")
		}); other >= 0 {
			v.Claim(prefix)
			fail("%s: %s and %s: the settings of one would begin as those of the other do (%s): rename one of them", variables.NamedSinks, s.program.NamedSinks[other], name,
				variables.SinkPrefix(min(name, s.program.NamedSinks[other])))
			continue
		}
		s.nameSink(v, name, fail)
	}
}

// nameSink reads the settings of one sink.
func (s *settings) nameSink(v *variables.Values, name string, fail func(format string, args ...any)) {
	prefix := variables.SinkPrefix(name)
	var room sinkRoom
	v.FillFields(variables.Renamed(variables.Fields(&room), func(variable string) string { return prefix + variable }))
	kind := sinkKindOf(strings.ToLower(room.Kind))
	if kind == nil {
		v.Claim(prefix)
		if room.Kind == "" {
			fail("%sKIND: not set: want %s", prefix, strings.Join(sinkNames(), ", "))
		} else {
			fail("%sKIND=%s: want %s", prefix, address.Argument(room.Kind), strings.Join(sinkNames(), ", "))
		}
		return
	}
	config := kind.config()
	s.named[name], s.sinks[name] = kind, config
	config.(interface {
		Call(name string, said func(string) string)
	}).Call(name, s.renamer(name, kind))
	v.FillFields(s.fieldsOf(name))
}

// fieldsOf are the settings of a sink, under the names that they have for it.
func (s *settings) fieldsOf(name string) []variables.Field {
	fields := variables.Fields(s.sinks[name])
	kind := s.named[name]
	if kind == nil {
		return fields
	}
	return variables.Renamed(fields, func(variable string) string { return variables.OfSink(name, kind.name, variable) })
}

// settingNames finds what may be the name of a setting in a text.
var settingNames = regexp.MustCompile(`[A-Z][A-Z0-9]*(_[A-Z0-9]+)+`)

// renamer puts the names that a kind's settings have for a sink into a text for people.
func (s *settings) renamer(name string, kind *sinkKind) func(string) string {
	renamed := make(map[string]string)
	for _, f := range variables.Fields(kind.config()) {
		for _, variable := range f.Names {
			if of := variables.OfSink(name, kind.name, variable); of != "" {
				renamed[variable] = of
			}
		}
	}
	return func(text string) string {
		text = strings.ReplaceAll(text, " (or BROKER_URL)", "") // which no named sink reads
		return settingNames.ReplaceAllStringFunc(text, func(variable string) string {
			if of := renamed[variable]; of != "" {
				return of
			}
			return variable
		})
	}
}

// said is an error under the names that settings have for a sink.
type said struct {
	text string
	error
}

func (e *said) Error() string { return e.text }
func (e *said) Unwrap() error { return e.error }

// say has an error name the settings of a sink as they are called for it.
func (s *settings) say(name string, err error) error {
	kind := s.named[name]
	if kind == nil || err == nil {
		return err
	}
	return &said{s.renamer(name, kind)(err.Error()), err}
}

// kindOf is the kind of a sink by its name: one of RELAY_SINKS, or any that BROKER_TYPE may name.
func (s *settings) kindOf(name string) *sinkKind {
	if kind := s.named[name]; kind != nil {
		return kind
	}
	return sinkKindOf(name)
}

// used are the names of the sinks that events go to: of BROKER_TYPE, then of RELAY_SINKS.
func (s *settings) used() []string {
	names := make([]string, 0, len(s.program.Sinks)+len(s.program.NamedSinks))
	for _, name := range s.program.Sinks {
		names = append(names, strings.ToLower(name))
	}
	return append(names, s.program.NamedSinks...)
}

// choosable are the names that a flag --sink may have.
func (s *settings) choosable() []string { return append(sinkNames(), s.program.NamedSinks...) }

// validateSink validates the settings of one sink.
func (s *settings) validateSink(name string) error {
	return s.say(name, s.kindOf(name).validate(s.sinks[name]))
}

// checkSinks validates which sinks there are, and their settings unless something else reports
// those of BROKER_TYPE.
func (s *settings) checkSinks(wrongBroker bool) (errs []error) {
	if len(s.used()) == 0 {
		errs = append(errs, fmt.Errorf("BROKER_TYPE: empty: want %s", strings.Join(sinkNames(), ", ")))
	}
	for i, name := range s.program.Sinks {
		name = strings.ToLower(name)
		s.program.Sinks[i] = name
		switch {
		case sinkKindOf(name) == nil:
			errs = append(errs, fmt.Errorf("BROKER_TYPE=%s: want %s, or several with commas between", name, strings.Join(sinkNames(), ", ")))
		case slices.Contains(s.program.Sinks[:i], name):
			errs = append(errs, fmt.Errorf("BROKER_TYPE: %s occurs twice", name))
		case !wrongBroker: // else its address is missing: the same problem
			errs = append(errs, s.validateSink(name))
		}
	}
	for _, name := range s.program.NamedSinks {
		errs = append(errs, s.validateSink(name))
	}
	return append(append(errs, s.checkOffers()...), s.checkWriters()...)
}

// offered is implemented by Configs of sinks that wait for an answer for as long as is set.
type offered interface {
	// CheckOffer returns what is wrong where one offer lasts no longer than limit.
	CheckOffer(limit time.Duration) error
}

// checkOffers finds sinks that would wait for longer than the lane does.
func (s *settings) checkOffers() (errs []error) {
	limit := min(s.relay.PublishTimeout, s.relay.SinkIsolation)
	for _, name := range s.used() {
		if c, ok := s.sinks[name].(offered); ok && limit > 0 { // else that is reported
			errs = append(errs, s.say(name, c.CheckOffer(limit)))
		}
	}
	return errs
}

// checkWriters finds sinks that would write into each other's lines.
func (s *settings) checkWriters() (errs []error) {
	type writer struct{ name, path string }
	var writers []writer
	for _, name := range s.used() {
		path := ""
		switch kind := s.kindOf(name); {
		case kind == nil || slices.ContainsFunc(writers, func(w writer) bool { return w.name == name }):
			continue
		case kind.name == "stdout":
			path = "standard output"
		case kind.name == "file":
			path = s.sinks[name].(*file.Config).Path
		default:
			continue
		}
		for _, other := range writers {
			if path != "" && s.kindOf(name) == s.kindOf(other.name) && (wholePath(path) == wholePath(other.path) || sameFile(path, other.path)) {
				errs = append(errs, fmt.Errorf("sinks %s and %s both write to %s: want a file for each", other.name, name, address.Path(path)))
			}
		}
		writers = append(writers, writer{name, path})
	}
	return errs
}

// wholePath is a path as far as its spelling can be compared.
func wholePath(path string) string {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	return path
}

// sameFile reports whether two paths are of one file that exists.
func sameFile(a, b string) bool {
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}

// openSink makes one sink.
func (s *settings) openSink(name string, log hclog.Logger) (relay.Sink, error) {
	sink, err := s.kindOf(name).open(s.sinks[name], log.Named("sink."+name))
	return sink, s.say(name, err)
}

// openSinks makes the sinks that events go to. They connect when first used.
func (s *settings) openSinks(log hclog.Logger) ([]relay.Sink, error) {
	var sinks []relay.Sink
	var kafkas []*kafka.Sink
	for _, name := range s.used() {
		sink, err := s.openSink(name, log)
		if err != nil {
			closeSinks(sinks, log)
			return nil, configError{err}
		}
		if k, ok := sink.(*kafka.Sink); ok {
			kafkas = append(kafkas, k)
		}
		if s.wrapSink != nil {
			sink = s.wrapSink(sink)
		}
		sinks = append(sinks, sink)
	}
	kafka.Apart(kafkas...)
	return sinks, nil
}

func closeSinks(sinks []relay.Sink, log hclog.Logger) {
	for _, sink := range sinks {
		if err := sink.Close(); err != nil {
			log.Warn("closing the sink", "sink", sink.Name(), "error", err)
		}
	}
}

// usedKinds are the kinds of all sinks that events go to, by name.
func (s *settings) usedKinds() map[string]string {
	kinds := make(map[string]string)
	for _, name := range s.used() {
		if kind := s.kindOf(name); kind != nil {
			kinds[name] = kind.name
		}
	}
	return kinds
}

// kindNames are the kinds of the named sinks, by name.
func (s *settings) kindNames() map[string]string {
	kinds := make(map[string]string)
	for name, kind := range s.named {
		kinds[name] = kind.name
	}
	return kinds
}
