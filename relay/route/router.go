package route

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sagaz-relay/relay/relay"
)

// router is one sink's rules.
type router struct {
	rules []*Rule
	names []string
	drop  bool // what no rule matches

	// Which rules events of two types can match. It is replaced as a whole, so that asking needs no
	// lock.
	known atomic.Pointer[map[types][]int]
	mu    sync.Mutex // held while known is replaced
}

var _ relay.Router = (*router)(nil)

// types are all of an event that most rules look at.
type types struct{ event, aggregate string }

// maxTypes bounds what is kept: types come from rows, and there may be any number of them. The first
// ones stay, and the rules are gone through for events of the others.
const maxTypes = 512

func newRouter(rules []*Rule, drop bool) *router {
	r := &router{rules: rules, drop: drop}
	for _, rule := range rules {
		r.names = append(r.names, rule.Name)
	}
	r.names = append(r.names, Default)
	known := make(map[types][]int)
	r.known.Store(&known)
	return r
}

// Rules implements relay.Router.
func (r *router) Rules() []string { return r.names }

// Match implements relay.Router.
func (r *router) Match(rec *relay.Record, ev *relay.Event) (n int, drop bool) {
	for _, n := range r.candidates(ev) {
		rule := r.rules[n]
		if len(rule.headers) > 0 {
			if rec == nil {
				// Nobody can tell whether it matches, so nothing is dropped: what is wrong with the
				// event has to show.
				return len(r.rules), false
			}
			if !rule.matchHeaders(rec.Headers) {
				continue
			}
		}
		return n, rule.Drop
	}
	return len(r.rules), r.drop
}

// Changes implements relay.Router.
func (r *router) Changes(n int) bool { return n < len(r.rules) && r.rules[n].changes() }

// Apply implements relay.Router.
func (r *router) Apply(n int, rec *relay.Record, ev *relay.Event) *relay.RefusedError {
	if err := r.rules[n].apply(rec, ev); err != nil {
		return &relay.RefusedError{Reason: relay.ReasonEncode, Err: err}
	}
	return nil
}

// candidates are the rules that an event of these types can match, up to the first that asks for
// nothing else.
func (r *router) candidates(ev *relay.Event) []int {
	of := types{ev.EventType, ev.AggregateType}
	known := *r.known.Load()
	list, ok := known[of]
	if ok {
		return list
	}
	for n, rule := range r.rules {
		if rule.matchTypes(of.event, of.aggregate) {
			list = append(list, n)
			if len(rule.headers) == 0 {
				break
			}
		}
	}
	if len(known) < maxTypes {
		r.keep(of, list)
	}
	return list
}

// keep notes the candidates of events of two types.
func (r *router) keep(of types, list []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := *r.known.Load()
	if len(known) >= maxTypes {
		return
	}
	more := maps.Clone(known)
	// Cloned: a part of a row's text keeps all of it.
	more[types{strings.Clone(of.event), strings.Clone(of.aggregate)}] = list
	r.known.Store(&more)
}
