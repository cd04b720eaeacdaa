package verify

// Report judges what has been noted so far. It may be called several times; commits and deliveries
// wait for it.
func (c *Checker) Report() *Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &Report{Committed: len(c.events), opts: c.opts}
	for _, n := range c.perKey {
		if n > 0 {
			r.Keys++
		}
	}
	for _, s := range c.sinks {
		r.Sinks = append(r.Sinks, c.judge(s))
	}
	return r
}

const (
	absent = -1 // the event never arrived
	exempt = -2 // a dead letter: it arrives or not, early or late
)

// judge goes over one sink's deliveries twice: first to learn what arrived at all, then to follow
// each key.
//
// In between, the events of each key that arrived get ranks, 0 and up without holes, in commit
// order. So an event that is missing is reported as that, and does not put everything behind it out
// of order.
func (c *Checker) judge(s *sink) SinkReport {
	r := SinkReport{Sink: s.name, Delivered: len(s.deliveries)}

	at := make([]int32, len(s.deliveries)) // index into events, or absent
	ranks := make([]int32, len(c.events))
	for i := range ranks {
		ranks[i] = absent
	}
	for i, d := range s.deliveries {
		index, ok := c.committed[d.id]
		if !ok {
			at[i] = absent
			r.Unknown = append(r.Unknown, Event{d.id, c.keyNames[d.key]})
			continue
		}
		at[i] = index
		ranks[index] = 0
		if d.key != c.events[index].key {
			r.WrongKey = append(r.WrongKey, WrongKey{Event: c.event(index), Got: c.keyNames[d.key]})
		}
	}
	for id := range s.dead {
		if index, ok := c.committed[id]; ok {
			if ranks[index] == absent {
				r.DeadLetters++
			}
			ranks[index] = exempt
		}
	}

	// events is in commit order for each key, so one pass gives the ranks.
	next := make([]int32, len(c.keyNames))
	for i := range c.events {
		switch ranks[i] {
		case absent:
			r.Missing = append(r.Missing, c.event(int32(i)))
		case exempt:
		default:
			key := c.events[i].key
			ranks[i] = next[key]
			next[key]++
		}
	}

	trails := make([]trail, len(c.keyNames))
	for i := range trails {
		trails[i] = trail{last: absent, reached: -1, top: -1}
	}
	arrived := make([]bool, len(c.events))
	for _, index := range at {
		if index == absent {
			continue
		}
		if arrived[index] {
			r.Duplicates = append(r.Duplicates, c.event(index))
		}
		if ranks[index] != exempt {
			key := c.events[index].key
			if kind := trails[key].step(ranks[index], arrived[index]); kind != "" {
				d := Disorder{Event: c.event(index), Position: int(c.events[index].position), Kind: kind}
				if last := trails[key].last; last != absent {
					d.After, d.AfterPosition = c.event(last), int(c.events[last].position)
				}
				r.OutOfOrder = append(r.OutOfOrder, d)
			}
			trails[key].note(index, ranks[index], arrived[index])
		}
		arrived[index] = true
	}
	for key := range trails {
		if t := &trails[key]; t.reached < t.top {
			r.OutOfOrder = append(r.OutOfOrder, Disorder{Event: c.event(t.last), Position: int(c.events[t.last].position), Kind: Stopped})
		}
	}
	return r
}

func (c *Checker) event(index int32) Event {
	e := &c.events[index]
	return Event{e.id, c.keyNames[e.key]}
}

// trail follows the ranks of one key at one sink.
type trail struct {
	last int32 // index into events of the newest delivery, or absent
	// reached is the rank up to which the key's events have arrived since the last step back; top
	// is the highest that has arrived at all. Below it, a redelivery is under way. Both start at
	// -1.
	reached, top int32
	// due is the lowest rank that has not arrived. ahead are those above it that have: empty,
	// unless order is broken.
	due   int32
	ahead map[int32]bool
}

// step returns what is wrong with rank as the next delivery; empty means nothing.
func (t *trail) step(rank int32, again bool) Kind {
	switch {
	case !again && rank > t.due:
		return Overtook
	case rank > t.reached+1:
		return LeftOut
	}
	return ""
}

func (t *trail) note(index, rank int32, again bool) {
	t.last = index
	t.top = max(t.top, rank)
	if again {
		t.reached = rank
	} else {
		// Also when it comes late: the one that overtook it was reported, and once is enough.
		t.reached = t.top
	}
	switch {
	case rank == t.due:
		for t.due++; t.ahead[t.due]; t.due++ {
			delete(t.ahead, t.due)
		}
	case rank > t.due:
		if t.ahead == nil {
			t.ahead = make(map[int32]bool)
		}
		t.ahead[rank] = true
	}
}
