package browser

import (
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// The states that are hard to bring about, as /status.json would tell them: each can be read on a
// phone and on a desktop, and says what it is.
func TestStates(t *testing.T) {
	s := newSite(t)
	r := s.relay("relay-a")
	golden := product.Read(t, "relay/admin/testdata/status.json")
	type object = map[string]any
	slot := func(st object) object { return st["slots"].([]any)[0].(object) }
	sinks := func(st object) []any { return st["sinks"].([]any) }
	database := func(st object) object { return st["database"].(object) }
	verdict := func(st object, level, summary string, reasons ...any) {
		st["verdict"] = object{"level": level, "summary": summary, "reasons": append([]any{}, reasons...)}
		st["ready"] = level != "broken"
	}
	well := func(st object) { // as if nothing were wrong
		now := time.Now().UTC()
		st["time"], st["started"] = now, now.Add(-50*time.Hour)
		st["slots"] = st["slots"].([]any)[:1]
		slot(st)["since"] = now.Add(-49 * time.Hour)
		slot(st)["stream_since_seconds"] = 49 * 3600
		for _, sink := range sinks(st) {
			maps.Copy(sink.(object), object{"up": true, "isolated": false, "last_error": "", "ledger": 0, "p99_seconds": 0.012, "rate": 812})
		}
		database(st)["ledger"] = []any{}
		database(st)["slots"] = database(st)["slots"].([]any)[:1]
		st["changes"] = []any{}
		verdict(st, "ok", "Relaying")
	}
	states := []struct {
		name   string
		change func(st object)
		says   map[string][]string // by the element's id
	}{
		{"Well", func(object) {}, map[string][]string{"verdict": {"Relaying", "all well", "every sink takes"}, "marks": {"99.9 %", "last 5 minutes", "99.0 % of all 1,000"}, "ledger": {"Empty"}, "changes": {"None yet"}}},
		{"Standby", func(st object) {
			st["slots"] = []any{object{"slot": "sagaz_outbox", "role": "standby", "since": st["started"], "lag_bytes": nil, "retained_bytes": nil, "safe_bytes": nil, "cap_bytes": nil, "inflight": 0, "pending_events": 0, "lag_seconds": 0, "streaming": false}}
			verdict(st, "ok", "Standing by")
		}, map[string][]string{"verdict": {"Standing by", "worker-1 owns sagaz_outbox"}, "figures": {"this relay owns no slot"}, "slots": {"standby", "worker-1"}}},
		{"SlotLost", func(st object) {
			maps.Copy(slot(st), object{"wal_status": "lost", "mode": "recovering", "streaming": false, "why": "lost", "safe_bytes": nil, "retained_bytes": 3 << 30, "cap_bytes": 2 << 30})
			verdict(st, "degraded", "Recovering", "slot sagaz_outbox: what the slot does not deliver is being found in the table", "slot sagaz_outbox: PostgreSQL has removed WAL that it needed")
			st["changes"] = []any{object{"time": st["time"], "kind": "slot_gone", "level": "broken", "slot": "sagaz_outbox", "text": "it cannot deliver everything any more: lost", "times": 1}}
		}, map[string][]string{"verdict": {"Recovering", "has removed WAL"}, "slots": {"recovering", "lost", "150\u00a0%", "WAL left before loss\nnone"}, "changes": {"slot accident"}}},
		{"Polling", func(st object) {
			maps.Copy(slot(st), object{
				"mode": "polling", "streaming": false, "wal_status": "", "lag_bytes": nil, "retained_bytes": nil, "safe_bytes": nil, "cap_bytes": nil,
				"why": "wal_level is replica, which keeps too little in the WAL to decode rows from it: ALTER SYSTEM SET wal_level = logical, then restart PostgreSQL",
			})
			verdict(st, "degraded", "Polling the table", "slot sagaz_outbox: streaming is impossible, the table is polled")
			st["changes"] = []any{object{"time": st["time"], "kind": "polling", "level": "degraded", "slot": "sagaz_outbox", "text": "wal_level is replica", "times": 1}}
		}, map[string][]string{"verdict": {"Polling the table", "degraded"}, "slots": {"polling", "ALTER SYSTEM"}, "changes": {"polling"}}},
		{"SinkIsolated", func(st object) {
			maps.Copy(sinks(st)[1].(object), object{"up": false, "isolated": true, "rate": 0, "p99_seconds": nil, "ledger": 184211, "last_error": "dial tcp 10.0.7.12:5672: connect: connection refused"})
			verdict(st, "degraded", "Relaying", "sink rabbitmq is isolated: its events go to the ledger")
			database(st)["ledger"] = []any{object{"slot": "sagaz_outbox", "sink": "rabbitmq", "state": "held", "reason": "sink_down", "entries": 184211, "oldest": st["started"]}}
		}, map[string][]string{"sinks": {"isolated", "184,211", "connection refused"}, "ledger": {"184,211"}}},
		{"DeadLetters", func(st object) {
			database(st)["ledger"] = []any{
				object{"slot": "sagaz_outbox", "sink": "kafka", "state": "dead", "reason": "too_large", "entries": 3, "oldest": st["started"]},
				object{"slot": "sagaz_outbox", "sink": "rabbitmq", "state": "retry", "reason": "nacked", "entries": 2, "oldest": st["started"]},
			}
			verdict(st, "degraded", "Relaying", "3 dead letters wait for a person")
		}, map[string][]string{"figures": {"dead-letter list"}, "ledger": {"dead letter", "too_large", "waits for its next try"}}},
		{"Refused", func(st object) {
			database(st)["ledger"] = []any{object{"slot": "sagaz_outbox", "sink": "rabbitmq", "state": "retry", "reason": "unroutable", "entries": 2, "oldest": st["started"]}}
		}, map[string][]string{"verdict": {"all well", "2 events were refused and wait for their next try: rabbitmq"}}},
		{"NoDatabase", func(st object) {
			st["slots"] = []any{object{"slot": "sagaz_outbox", "role": "starting", "since": st["started"], "lag_bytes": nil, "retained_bytes": nil, "safe_bytes": nil, "cap_bytes": nil, "inflight": 0, "pending_events": 0, "lag_seconds": 0, "streaming": false}}
			st["start_error"] = "connect to db:5432/shop as relay: dial tcp: lookup db: no such host"
			st["database"] = object{"error": st["start_error"]}
			verdict(st, "degraded", "Starting for 42s", "slot sagaz_outbox: the database has not answered yet (DATABASE_URL): "+st["start_error"].(string))
		}, map[string][]string{"verdict": {"Starting", "no such host"}, "figures": {"not known"}, "slots": {"Starting for"}, "build": {"Times are in "}, "ledger": {"does not answer"}, "marks": {"Not known yet"}}},
		{"WaitsForTheServer", func(st object) {
			maps.Copy(slot(st), object{"waits_for": "server", "waits_seconds": 130, "lag_bytes": 3 << 30})
			slot(st)["hot_share"] = 0.02
		}, map[string][]string{"slots": {"Waits for", "PostgreSQL", "2 min"}, "marks": {"2.0 %", "not HOT", "sagaz-relay doctor"}}},
	}
	for _, state := range states {
		t.Run(state.name, func(t *testing.T) {
			var st object
			if err := json.Unmarshal(golden, &st); err != nil {
				t.Fatal(err)
			}
			well(st)
			state.change(st)
			body, err := json.Marshal(st)
			if err != nil {
				t.Fatal(err)
			}
			b := newTab(t)
			b.answers(string(body))
			b.look(1280, 900, "light")
			b.do(chromedp.Navigate(r.url + "/"))
			for id, words := range state.says {
				b.waitText(id, words...)
			}
			for _, v := range []struct {
				name   string
				width  int
				scheme string
			}{{"desktop", 1280, "light"}, {"phone", 390, "dark"}} {
				b.look(v.width, 900, v.scheme)
				b.wantFits()
				for _, low := range js[[]string](b, contrast) {
					if low != "" && low[0] != 'o' { // "only … texts": a standby has few
						t.Errorf("%s: too little contrast: %s", v.name, low)
					}
				}
				b.keep("state-" + state.name + "-" + v.name)
			}
			b.wantClean(r.url)
		})
	}
}
