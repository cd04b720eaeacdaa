package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// explainedRoute is where a sink gets an event, and by which rule.
type explainedRoute struct {
	Sink       string `json:"sink"`
	Rule       string `json:"rule,omitempty"` // none where the sink has no rules
	Dropped    bool   `json:"dropped,omitempty"`
	Topic      string `json:"topic,omitempty"`
	RoutingKey string `json:"routing_key,omitempty"`
	Key        string `json:"key,omitempty"`   // the message's
	Error      string `json:"error,omitempty"` // why it is refused
	Events     int    `json:"events,omitempty"`
}

// of finds out where an event goes at a sink.
func (r *routing) of(sink string, ev *relay.Event) explainedRoute {
	out := explainedRoute{Sink: sink}
	var rec relay.Record
	shared := &rec
	err := r.encoder.Encode(&rec, ev)
	if err != nil {
		shared = nil
	}
	own := &rec
	if router := r.table.Router(sink); router != nil {
		routed := relay.RouteOf(router, shared, ev)
		out.Rule, out.Dropped = router.Rules()[routed.Rule], routed.Drop
		if routed.Unfit != nil {
			err = routed.Unfit
		}
		if routed.Record != nil {
			own = routed.Record
		}
	}
	keyed, ok := r.settings.sinks[sink].(routingKeyed)
	switch {
	case out.Dropped:
	case err != nil:
		out.Error = err.Error()
	case ok && keyed.RoutingKeys():
		out.RoutingKey = own.RoutingKey // and no key
	default:
		out.Topic, out.Key = own.Topic, own.MessageKey()
	}
	return out
}

// destination is where it goes, in a word.
func (e *explainedRoute) destination() string {
	switch {
	case e.Dropped:
		return "dropped"
	case e.Error != "":
		return "refused: " + e.Error
	default:
		return e.Topic + e.RoutingKey // never both
	}
}

func (r *routing) explainEvent(ev *relay.Event) error {
	all := []explainedRoute{}
	for _, sink := range r.settings.used() {
		all = append(all, r.of(sink, ev))
	}
	if r.asJSON {
		return term.WriteJSON(r.out, struct {
			EventType     string           `json:"event_type"`
			AggregateType string           `json:"aggregate_type"`
			Sinks         []explainedRoute `json:"sinks"`
		}{ev.EventType, ev.AggregateType, all})
	}
	t := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SINK\tRULE\tTOPIC OR ROUTING KEY\tKEY")
	for _, e := range all {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", term.Text(e.Sink), term.OrDash(e.Rule), term.Text(e.destination()), term.Text(term.OrDash(e.Key)))
	}
	return t.Flush()
}

func (r *routing) explainRow(ctx context.Context, _ *settings, conn *pgx.Conn) error {
	var err error
	found, readErr := store.ReadOne(ctx, conn, r.eventID, func(ev *relay.Event) { err = r.explainEvent(ev) })
	if readErr == nil && !found {
		return fmt.Errorf("routes: no event %s in saga_outbox or its archive", r.eventID)
	}
	return errors.Join(readErr, err)
}

// shownDestinations bounds how many lines --last prints: a template may name one for each event.
const shownDestinations = 500

// newest is where the newest rows go.
type newest struct {
	Events       int              `json:"events"`
	Destinations []explainedRoute `json:"destinations"`
	// More are, by sink, events with yet another destination than the first shownDestinations.
	More map[string]int `json:"more,omitempty"`
	// Never are, by sink, the rules that match none of the rows.
	Never map[string][]string `json:"never_matched"`
}

// explainNewest counts where the newest rows go.
func (r *routing) explainNewest(ctx context.Context, _ *settings, conn *pgx.Conn) error {
	type sinkRule struct{ sink, rule string }
	var (
		n       = newest{Destinations: []explainedRoute{}, More: make(map[string]int), Never: make(map[string][]string)}
		counts  = make(map[explainedRoute]int)
		matched = make(map[sinkRule]bool)
		used    = r.settings.used()
	)
	err := store.ReadNewest(ctx, conn, 0, r.last, func(ev *relay.Event) {
		n.Events++
		for _, sink := range used {
			e := r.of(sink, ev)
			e.Key = "" // of each event another one
			matched[sinkRule{sink, e.Rule}] = true
			if _, known := counts[e]; !known && len(counts) >= shownDestinations {
				n.More[sink]++
				continue
			}
			counts[e]++
		}
	})
	if err != nil {
		return err
	}
	for e, events := range counts {
		e.Events = events
		n.Destinations = append(n.Destinations, e)
	}
	slices.SortFunc(n.Destinations, func(a, b explainedRoute) int {
		return cmp.Or(cmp.Compare(slices.Index(used, a.Sink), slices.Index(used, b.Sink)), cmp.Compare(b.Events, a.Events), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.destination(), b.destination()))
	})
	for _, sink := range used {
		for _, rule := range r.table.Of(sink) {
			if !matched[sinkRule{sink, rule.Name}] {
				n.Never[sink] = append(n.Never[sink], rule.Name)
			}
		}
	}
	if r.asJSON {
		return term.WriteJSON(r.out, n)
	}
	return r.printNewest(&n)
}

func (r *routing) printNewest(n *newest) error {
	fmt.Fprintf(r.out, "the newest %d rows\n\n", n.Events)
	t := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SINK\tRULE\tTOPIC OR ROUTING KEY\tEVENTS")
	for _, e := range n.Destinations {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", term.Text(e.Sink), term.OrDash(e.Rule), term.Text(e.destination()), e.Events)
	}
	for _, sink := range slices.Sorted(maps.Keys(n.More)) {
		fmt.Fprintf(t, "%s\t\tmore destinations\t%d\n", sink, n.More[sink])
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, sink := range slices.Sorted(maps.Keys(n.Never)) {
		fmt.Fprintf(r.out, "\n%s: no row matches %s\n", sink, strings.Join(n.Never[sink], ", "))
	}
	return nil
}
