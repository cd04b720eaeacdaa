package watch

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

func TestPace(t *testing.T) {
	var p pace
	at := time.Unix(1_800_000_000, 0)
	if rate, p99 := p.read(at); rate != 0 || p99 != nil {
		t.Errorf("nothing yet: %v, %v", rate, p99)
	}
	for range 10 { // 100 events a second, each batch in 10 ms
		p.add(at, 100, 10*time.Millisecond)
		at = at.Add(time.Second)
	}
	rate, p99 := p.read(at)
	if rate != 100 || p99 == nil || *p99 < 0.010 || *p99 > 0.0119 {
		t.Errorf("got %v/s, p99 %v; want 100/s and 10 to 11.9 ms", rate, *p99)
	}
	p.add(at, 11, time.Second) // more than a hundredth of them
	if _, p99 := p.read(at); *p99 < 1 || *p99 > 1.19 {
		t.Errorf("p99 %v s, want a second", *p99)
	}
	at = at.Add(30 * time.Second)
	if rate, p99 := p.read(at); rate != 0 || p99 == nil {
		t.Errorf("after half a minute: %v/s, p99 %v; want no rate, and the minute's p99", rate, p99)
	}
	at = at.Add(time.Minute)
	if _, p99 := p.read(at); p99 != nil || p.total != 1011 {
		t.Errorf("after more than a minute: p99 %v, total %d", *p99, p.total)
	}
	p.add(at, 1, 24*time.Hour) // not out of range
}

func TestChangeLog(t *testing.T) {
	var l changeLog
	for range 200 { // what flaps is counted
		l.add(relay.Change{Kind: relay.ChangeSinkDown, Sink: "kafka", Text: "sink down"})
		l.add(relay.Change{Kind: relay.ChangeSinkUp, Sink: "kafka", Text: "sink up again"})
	}
	if got := l.newest(); len(got) != 2 || got[0].Kind != relay.ChangeSinkUp || got[0].Times != 200 || got[1].Times != 200 {
		t.Errorf("got %+v", got)
	}
	for i := range 200 { // what does not is bounded
		l.add(relay.Change{Kind: relay.ChangeLeaseTaken, Text: strings.Repeat("x", i)})
	}
	got := l.newest()
	if len(got) != changesKept || len(got[0].Text) != 199 {
		t.Errorf("%d changes, the newest %q", len(got), got[0].Text)
	}
}

func TestShown(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"one\n  two\r\n\tthree\x00\x1b[0m": `one two three\x00\x1b[0m`,
		"bad \xff byte":                    `bad \xff byte`,
		strings.Repeat("é", 1000):          strings.Repeat("é", shownLength) + "…",
		"<script>alert(1)</script>":        "<script>alert(1)</script>", // the page escapes, once
	} {
		if got := shown(in); got != want {
			t.Errorf("%.40q: got %q, want %q", in, got, want)
		}
	}
}

func TestSamples(t *testing.T) {
	var s samples
	tell := func(at int64) string {
		var words []string
		for _, v := range s.upTo(at)[historySamples-6:] {
			words = append(words, fmt.Sprint(v))
		}
		return strings.Join(words, " ")
	}
	if got, want := tell(7), "NaN NaN NaN NaN NaN NaN"; got != want {
		t.Errorf("before the first: got %s, want %s", got, want)
	}
	for tick := range int64(1000) {
		s.put(tick+1, float64(tick+1))
	}
	if got, want := tell(1000), "995 996 997 998 999 1000"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.put(1003, 1003) // the machine slept meanwhile: what stood there is a quarter of an hour old
	if got, want := tell(1004), "999 1000 NaN NaN 1003 NaN"; got != want {
		t.Errorf("after a sleep: got %s, want %s", got, want)
	}
	s.put(5000, 1)
	if got, want := tell(5000), "NaN NaN NaN NaN NaN 1"; got != want {
		t.Errorf("after a long one: got %s, want %s", got, want)
	}
}
