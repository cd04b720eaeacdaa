package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	o, err := parse(nil)
	if err != nil || len(o.contestants) != len(contestants()) || len(o.measures) != 3 || o.repeat < 5 || o.drains[0] != (shape{5000, 500}) {
		t.Errorf("without flags: %+v, %v", o, err)
	}
	o, err = parse([]string{"-contestants", "debezium,relay-update", "-drains", "1:200", "-rates", "7", "-rate-for", "2s"})
	if err != nil || !slices.Equal(o.contestants, []string{"debezium", "relay-update"}) || !slices.Equal(o.drains, []shape{{1, 200}}) || !slices.Equal(o.rates, []int{7}) || o.rateFor != 2*time.Second {
		t.Errorf("got %+v, %v", o, err)
	}
	if o, err := parse([]string{"-smoke"}); err != nil || o.repeat != 1 {
		t.Errorf("-smoke: %+v, %v", o, err)
	}
	for _, wrong := range []string{"-contestants=x", "-measures=x", "-drains=5", "-drains=1:x", "-drains=0:500", "-rates=0", "-rates=x", "-repeat=0", "-rate-for=1ms", "x"} {
		if _, err := parse([]string{wrong}); err == nil {
			t.Errorf("%s was taken", wrong)
		}
	}
}

func TestRowsOfABacklog(t *testing.T) {
	o := options{rows: 1000, slowRows: 10, rabbitRows: 100}
	for _, c := range []struct {
		contestant string
		bytes      int
		want       int
	}{{"relay-update", 500, 1000}, {"relay-update", 4096, 250}, {"debezium", 200, 1000}, {"python-kafka", 500, 10}, {"relay-rabbitmq", 500, 100}} {
		all := contestants()
		i := slices.IndexFunc(all, func(one *contestant) bool { return one.name == c.contestant })
		if got := o.rowsOf(all[i], shape{5000, c.bytes}); got != c.want {
			t.Errorf("%s, %d bytes: %d rows, want %d", c.contestant, c.bytes, got, c.want)
		}
	}
}

func TestNumberOfAMessage(t *testing.T) {
	for body, want := range map[string]int{
		fmt.Sprintf(`{"n": "`+numbered+`"}`, 42):                                   42,
		fmt.Sprintf(`{"event_id": "event-x", "payload": {"n": "`+numbered+`"}`, 7): 7,
		"event-0000000001": 1,
		"event-00000":      -1,
		"nothing":          -1,
	} {
		n, ok := number([]byte(body))
		if !ok {
			n = -1
		}
		if n != want {
			t.Errorf("%s: %d, want %d", body, n, want)
		}
	}
}

func TestArrivals(t *testing.T) {
	a := newArrivals("id")
	for _, n := range []int{1, 2, 2} {
		a.take(fmt.Appendf(nil, numbered, n), []string{"other", "id"})
	}
	if total, distinct, odd := a.counts(); total != 3 || distinct != 2 || odd != "" {
		t.Errorf("%d messages of %d events, %q; want 3 of 2", total, distinct, odd)
	}
	if _, ok := a.at(3); ok {
		t.Error("event 3 has arrived")
	}
	if at, err := a.next(t.Context(), 2); err != nil || time.Since(at) > time.Minute {
		t.Errorf("the third message came at %v, %v", at, err)
	}
	a.take(fmt.Appendf(nil, numbered, 3), []string{"other"})
	if _, _, odd := a.counts(); !strings.Contains(odd, "and not id") {
		t.Errorf("a message without its header: %q", odd)
	}
}

func TestProcesses(t *testing.T) {
	p, ok := parseStat("42 (a name) with ) 1) S 7 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 1 1 1")
	if !ok || p.parent != 7 || p.cpu != 2 {
		t.Errorf("parsed %+v, %v; want parent 7, 2 s", p, ok)
	}
	if _, ok := parseStat("42 (cut off) S 7"); ok {
		t.Error("half a line was taken")
	}
	if got := parsePeak("Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t 1 kB\n"); got != 2<<20 {
		t.Errorf("peak %v, want 2 MiB", got)
	}
	if all := processes(); len(all) > 0 && all[os.Getpid()].parent != os.Getppid() {
		t.Errorf("our parent is %d, want %d", all[os.Getpid()].parent, os.Getppid())
	}
}

func TestBackendsByTitle(t *testing.T) {
	for title, want := range map[string]string{
		"/bin/postgres -D data":                                ofServer,
		"postgres: checkpointer ":                              ofServer,
		"postgres: walwriter ":                                 ofServer,
		"postgres: autovacuum worker app":                      ofServer,
		"postgres: walsender relay app 127.0.0.1(4711) START_": ofWalsender,
		"postgres: relay app 127.0.0.1(4711) idle":             ofBackends,
	} {
		if got := groupOfTitle(title); got != want {
			t.Errorf("%q: %s, want %s", title, got, want)
		}
	}
}

func TestContestantsAreComplete(t *testing.T) {
	for _, c := range contestants() {
		if c.prepare == nil || c.command == nil || c.header == "" {
			t.Errorf("%s is not complete", c.name)
		}
	}
	if text := insertSQL("topic", "i", 500, " FROM generate_series(1, 5) AS i"); !strings.Contains(text, "repeat(md5(i::text), 14)") {
		t.Errorf("500 bytes: %s", text)
	}
}
