package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/route"
)

// routing is one run of the command.
type routing struct {
	settings *settings
	table    *route.Table
	encoder  *encode.Encoder
	out      io.Writer

	explain bool
	id      string
	eventID relay.UUID  // of id
	event   relay.Event // of --event-type and what goes with it
	headers []string
	last    int
	asJSON  bool
}

func newRoutes(load func() (*settings, error)) *cobra.Command {
	var r routing
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "List the rules of each sink, or explain where events go and why",
		Long: `routes lists the rules of RELAY_ROUTES for each sink, in the order in which they are asked: the first
that matches an event counts (docs/routes.md). It connects to nothing.

With --explain it prints which rule decides at each sink, and where the event goes:

  --id UUID            an event, by its row
  --event-type TYPE    an event as these flags describe it: --aggregate-type, --aggregate-id,
                       --saga-id, --header NAME=VALUE; it connects to nothing
  --last N             the newest N rows of saga_outbox: how many go where, and which rules match
                       none of them

The rules are those of the settings that the command has, as run would have them. Nothing is sent.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.check(cmd); err != nil {
				return err
			}
			s, err := load()
			if err != nil {
				return err
			}
			r.settings, r.out = s, cmd.OutOrStdout()
			if err := s.encode.Validate(); err != nil {
				return configError{err}
			}
			if r.table, err = s.routes(); err != nil {
				return configError{err}
			}
			if r.encoder, err = encode.New(s.encode); err != nil {
				return configError{err}
			}
			switch {
			case r.id != "":
				return onDatabase(cmd, load, "routes", r.explainRow)
			case r.last > 0:
				return onDatabase(cmd, load, "routes", r.explainNewest)
			case r.explain:
				return r.explainEvent(&r.event)
			default:
				return r.list()
			}
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&r.explain, "explain", false, "where events go and why: with --id, --event-type or --last")
	flags.StringVar(&r.id, "id", "", "the event with this `event_id`")
	flags.StringVar(&r.event.EventType, "event-type", "", "an event of this `type`")
	flags.StringVar(&r.event.AggregateType, "aggregate-type", "saga", "its aggregate_`type`")
	flags.StringVar(&r.event.AggregateID, "aggregate-id", "", "its aggregate_`id`, which is the key")
	flags.StringVar(&r.event.SagaID, "saga-id", "", "its saga_`id`")
	flags.StringArrayVar(&r.headers, "header", nil, "one of its headers, `NAME=VALUE`; may be repeated")
	flags.IntVar(&r.last, "last", 0, "the newest `N` rows")
	flags.BoolVar(&r.asJSON, "json", false, "print JSON")
	return cmd
}

// check reads the flags.
func (r *routing) check(cmd *cobra.Command) error {
	chosen := 0
	for _, name := range []string{"id", "event-type", "last"} {
		if cmd.Flags().Changed(name) {
			chosen++
		}
	}
	switch {
	case !r.explain && chosen > 0:
		return usageError{errors.New("routes: want --explain with --id, --event-type and --last")}
	case r.explain && chosen != 1:
		return usageError{errors.New("routes: --explain wants one of --id UUID, --event-type TYPE and --last N")}
	case cmd.Flags().Changed("last") && (r.last < 1 || r.last > 1_000_000):
		return usageError{fmt.Errorf("routes: --last %d: want 1 to 1000000 rows", r.last)}
	case cmd.Flags().Changed("event-type") && r.event.EventType == "":
		return usageError{errors.New("routes: --event-type: empty: want the type of an event")}
	}
	for _, name := range []string{"aggregate-type", "aggregate-id", "saga-id", "header"} {
		if cmd.Flags().Changed(name) && r.event.EventType == "" {
			return usageError{fmt.Errorf("routes: --%s: want --event-type with it", name)}
		}
	}
	if cmd.Flags().Changed("id") {
		id, err := relay.ParseUUID(strings.TrimSpace(r.id))
		if err != nil {
			return usageError{fmt.Errorf("routes: --id: %w", err)}
		}
		r.eventID = id
	}
	headers := make(map[string]string)
	for _, h := range r.headers {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return usageError{fmt.Errorf("routes: --header %s: want NAME=VALUE", address.Argument(h))}
		}
		headers[name] = value
	}
	text, err := json.Marshal(headers)
	r.event.Payload, r.event.Headers, r.event.Loose = "null", string(text), true
	return err
}

// list prints the rules of all sinks.
func (r *routing) list() error {
	type sinkRules struct {
		Sink string `json:"sink"`
		Kind string `json:"kind"`
		// deliver or drop: what becomes of an event that no rule matches
		NoMatch string        `json:"no_match"`
		Rules   []route.Shown `json:"rules"`
	}
	all := []sinkRules{}
	for _, name := range r.settings.used() {
		if kind := r.settings.kindOf(name); kind != nil {
			all = append(all, sinkRules{name, kind.name, r.settings.route.NoMatch, r.table.Of(name)})
		}
	}
	if r.asJSON {
		return term.WriteJSON(r.out, struct {
			Sinks []sinkRules `json:"sinks"`
		}{all})
	}
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(r.out)
		}
		if len(s.Rules) == 0 {
			fmt.Fprintf(r.out, "%s (%s): no rules, it gets every event\n", term.Text(s.Sink), s.Kind)
			continue
		}
		fmt.Fprintf(r.out, "%s (%s):\n", term.Text(s.Sink), s.Kind)
		t := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
		for n, rule := range s.Rules {
			fmt.Fprintf(t, "  %d\t%s\t%s\t%s\n", n+1, rule.Name, term.Text(matches(rule)), term.Text(becomes(rule)))
		}
		fmt.Fprintf(t, "  -\t%s\t%s\t%s\n", route.Default, "any other", s.NoMatch)
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// matches says which events a rule is for.
func matches(rule route.Shown) string {
	var parts []string
	say := func(name string, globs []string) {
		if len(globs) > 0 {
			parts = append(parts, name+"="+strings.Join(globs, "|"))
		}
	}
	say("event_type", rule.EventType)
	say("aggregate_type", rule.AggregateType)
	for _, name := range slices.Sorted(maps.Keys(rule.Headers)) {
		say("header "+name, rule.Headers[name])
	}
	if parts == nil {
		return "any"
	}
	return strings.Join(parts, " ")
}

// becomes says what a rule does.
func becomes(rule route.Shown) string {
	if rule.Drop {
		return route.Drop
	}
	text := route.Deliver
	for _, to := range [][2]string{{"topic", rule.Topic}, {"routing_key", rule.RoutingKey}, {"key", rule.Key}} {
		if to[1] != "" {
			text += " " + to[0] + "=" + to[1]
		}
	}
	return text
}
