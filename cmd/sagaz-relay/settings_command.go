package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/internal/variables"
	"github.com/sagaz-relay/relay/sinks/kafka"
)

// shownSetting is one line of `settings`. Its JSON is what the checks of manifests and compose
// files compare with.
type shownSetting struct {
	// the first is the setting's own, the others mean the same
	Names    []string `json:"names"`
	Fallback string   `json:"fallback,omitempty"` // read when none of them is set
	Default  string   `json:"default"`
	Value    string   `json:"value"` // in force; never a secret's
	// the variable that it comes from; none: the default
	Source string `json:"source,omitempty"`
	Secret bool   `json:"secret,omitempty"`
}

func newSettings(load func() (*settings, error)) *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "settings [NAME...]",
		Short: "Show which settings are in force and where they come from",
		Long: `settings reads the environment, the files that NAME_FILE variables name, and --config, as run
does, and prints what is set: the setting, its value, and the variable that it comes from. Secrets
are not shown. --all prints those with their default, too. It connects to nothing. What run would
refuse it reports, and exits with 2; what has no default and is not set (DATABASE_URL, for one)
may come from elsewhere, and is only a note.

With names it explains these settings instead, in the words of docs/settings.md, and reads
nothing.`,
		RunE: func(cmd *cobra.Command, names []string) error {
			if len(names) > 0 {
				return explain(cmd.OutOrStdout(), names)
			}
			s, err := load()
			if err != nil {
				return err
			}
			shown := s.shown()
			if asJSON {
				err = term.WriteJSON(cmd.OutOrStdout(), shown)
			} else {
				err = printSettings(cmd.OutOrStdout(), shown, all)
			}
			if err != nil {
				return err
			}
			return s.usable(cmd.ErrOrStderr())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, all of them")
	cmd.Flags().BoolVar(&all, "all", false, "print settings that have their default, too")
	return cmd
}

// explain prints what settings do.
func explain(w io.Writer, names []string) error {
	for i, name := range names {
		found := slices.DeleteFunc(allVariables(), func(v variable) bool { return v.fallback != name && !slices.Contains(v.names, name) })
		if len(found) == 0 {
			found = ofNamedSink(name)
		}
		if len(found) == 0 {
			known := variables.New(func(string) (string, bool) { return "", false }, "")
			for _, c := range defaultSettings().configs() {
				known.Fill(c)
			}
			hint := ""
			if near := known.Nearest(name); near != "" {
				hint = ": did you mean " + near + "?"
			}
			return usageError{fmt.Errorf("%s: no such setting%s", variables.ShownName(name), hint)}
		}
		for j, v := range found {
			if i+j > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "%s\n    %s\n", v.line(), term.Hang(explained[v.names[0]], 4))
		}
	}
	return nil
}

// ofNamedSink are the settings that a variable of a named sink may stand for, whatever the sink's
// name and kind.
func ofNamedSink(name string) []variable {
	if !strings.HasPrefix(name, "RELAY_SINK_") {
		return nil
	}
	return slices.DeleteFunc(allVariables(), func(v variable) bool {
		if v.names[0] == variables.NamedSinks {
			return !strings.HasSuffix(name, "_KIND")
		}
		return !slices.ContainsFunc(sinkKinds, func(kind sinkKind) bool {
			rest, ok := strings.CutPrefix(variables.OfSink("", kind.name, v.names[0]), variables.SinkPrefix(""))
			return ok && rest != "" && strings.HasSuffix(name, "_"+rest)
		})
	})
}

// usable validates what is set as run does. What is not set at all is a note on w.
func (s *settings) usable(w io.Writer) error {
	check := *s
	note := func(name string) { fmt.Fprintf(w, "note: %s is not set, and run needs it\n", name) }
	if check.cdc.DatabaseURL == "" {
		note("DATABASE_URL")
		check.cdc.DatabaseURL, check.store.DatabaseURL = "postgresql://", "postgresql://"
	}
	check.sinks = maps.Clone(s.sinks)
	for name, config := range s.sinks {
		kafka, ok := config.(*kafka.Config)
		if !ok || len(kafka.Brokers) > 0 {
			continue
		}
		if slices.Contains(s.used(), name) {
			note(kafka.Said("KAFKA_BOOTSTRAP_SERVERS"))
		}
		filled := *kafka
		filled.Brokers = []string{"localhost"}
		check.sinks[name] = &filled
	}
	return check.all()
}

// defaults are those of all settings, by their first names.
func (s *settings) defaults() map[string]string {
	plain := defaultSettings()
	plain.program.NamedSinks, plain.named = s.program.NamedSinks, s.named
	for name, kind := range s.named {
		plain.sinks[name] = kind.config()
	}
	values := make(map[string]string)
	for _, v := range plain.variables() {
		values[v.names[0]] = v.value
	}
	for name := range s.named {
		values[variables.SinkPrefix(name)+"KIND"] = ""
	}
	values[variables.NamedSinks] = ""
	return values
}

// shown lists every setting, without secrets.
func (s *settings) shown() []shownSetting {
	var list []shownSetting
	defaults := s.defaults()
	for _, v := range s.variables() {
		out := shownSetting{Names: v.names, Fallback: v.fallback, Default: defaults[v.names[0]], Value: v.value, Source: s.sources[v.names[0]], Secret: v.secret}
		if out.Source != "" {
			out.Value = v.shown
		}
		list = append(list, out)
	}
	return list
}

func printSettings(w io.Writer, shown []shownSetting, all bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SETTING\tVALUE\tFROM")
	for _, s := range shown {
		if s.Source == "" && !all {
			continue
		}
		from := s.Source
		if from == "" {
			from = "default"
		}
		value := s.Value
		if lines := strings.Count(strings.TrimSpace(value), "\n"); lines > 0 { // rules: sagaz-relay routes prints them
			value = fmt.Sprintf("(%d lines)", lines+1)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", s.Names[0], term.OrDash(value), from)
	}
	return t.Flush()
}
