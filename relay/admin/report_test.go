package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func ptr[T any](v T) *T { return &v }

// An owner in trouble, with everything that there is to show.
func troubled() shown {
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	nan := math.NaN()
	return shown{
		status: func() watch.Status {
			return watch.Status{
				WorkerID: "worker-1", Started: at, Wanted: relay.ModeAuto,
				Set: &watch.SetStatus{Shards: 2, Generation: 3, Change: &watch.SetChange{
					Target: 4, State: relay.SetDraining, Seconds: 12.5, Changer: "worker-2", Switch: "0/16B4000", WaitsFor: "the old slot other, owned by worker-2: it has 4096 B of WAL left to the switch",
					Old: []watch.OldSlot{{Slot: "sagaz_outbox", Left: ptr[int64](0), Stopped: true}, {Slot: "other", Owner: "worker-2", Left: ptr[int64](4096)}},
				}},
				Slots: []watch.SlotStatus{
					{
						Slot: "sagaz_outbox", Role: relay.Owner, Since: at.Add(time.Minute), Epoch: 7, Inflight: 3, Bytes: 1500, Admitted: 10, Marked: 7, Swept: 2, Watermark: "0/16B3748",
						Read: "0/16B3760", LagSeconds: 1.5, Mode: relay.ModeCDC, Streaming: true, StreamSince: 60, Pending: 4, InflightLimit: 16384, InflightBudget: 1 << 24,
						LagBytes: ptr[int64](4096), RetainedBytes: ptr[int64](1 << 20), SafeBytes: ptr[int64](1 << 30), CapBytes: ptr[int64](2 << 30), WALStatus: "reserved", HOTShare: ptr(0.999),
					},
					{Slot: "other", Role: relay.Standby, Since: at},
				},
				Sinks: []watch.SinkStatus{
					{Sink: "kafka", Kind: "kafka", Up: true, Since: ptr(at), Rate: 12.5, P99: ptr(0.004), Acked: 10},
					{Sink: "rabbitmq", Kind: "rabbitmq", LastError: "<script>alert(1)</script>", Since: ptr(at), LastErrorAt: ptr(at), Ledger: 2, Isolated: true},
				},
			}
		},
		changes: []relay.Change{{Time: at, Kind: relay.ChangeSinkDown, Level: relay.LevelDegraded, Sink: "rabbitmq", Text: "sink down: \"</script><img src=x onerror=alert(2)>", Times: 3}},
		history: watch.History{
			End: at, EverySeconds: 5,
			Slots: map[string]watch.SlotHistory{"sagaz_outbox": {LagBytes: watch.Series{nan, 4096}, LagSeconds: watch.Series{nan, 1.5}, RetainedBytes: watch.Series{nan, 1 << 20}}},
			Sinks: map[string]watch.SinkHistory{"kafka": {Rate: watch.Series{nan, 12.5}}},
		},
	}
}

func seen(context.Context) (*Database, error) {
	return &Database{
		Slots:   []DatabaseSlot{{Slot: "sagaz_outbox", Owner: "worker-1", Epoch: 7, Active: true, LagBytes: ptr[int64](4096), RetainedBytes: ptr[int64](1 << 20), WALStatus: "reserved"}, {Slot: "other", Owner: "worker-2", Epoch: 3, Taken: ptr(time.Date(2026, 11, 25, 11, 30, 0, 0, time.UTC)), Active: true}},
		Ledger:  []DatabaseLedger{{Slot: "sagaz_outbox", Sink: "rabbitmq", State: "dead", Reason: "unroutable", Entries: 2, Oldest: time.Date(2026, 11, 25, 11, 0, 0, 0, time.UTC)}},
		Updates: 1000, HOTUpdates: 990,
	}, nil
}

// What /status.json looks like is in testdata/status.json: scripts read it. -update rewrites that.
func TestReportGolden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock always begins at the same moment
		h := Handler(Config{Version: "1.2.3", Revision: "abcdef", Database: seen}, troubled(), prometheus.NewRegistry())
		_, _, body := get(t, h, "GET", "/status.json")
		if strings.Contains(body, "<script>") || strings.Contains(body, "<img") {
			t.Error("markup is in the JSON as it is")
		}
		var got bytes.Buffer
		if err := json.Indent(&got, []byte(body), "", "  "); err != nil {
			t.Fatal(err)
		}
		const path = "testdata/status.json"
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("/status.json has changed (-update rewrites testdata): got\n%s", got.String())
		}
	})
}

// Many viewers cost the database one look in five seconds, and nothing without viewers, and errors
// there make no viewer wait for long.
func TestDatabaseIsLookedAtSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks := 0
		var fail error
		h := Handler(Config{Database: func(ctx context.Context) (*Database, error) {
			looks++
			time.Sleep(100 * time.Millisecond)
			if fail != nil {
				return nil, fail
			}
			return seen(ctx)
		}}, troubled(), prometheus.NewRegistry())
		view := func() (rep struct {
			Verdict  watch.Verdict
			Database struct {
				Slots []DatabaseSlot
				Error string
			}
		},
		) {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest("GET", "/status.json", nil))
			if err := json.Unmarshal(rec.Body.Bytes(), &rep); err != nil {
				t.Error(err)
			}
			return rep
		}
		for range 6 { // ten viewers for 12 s
			var viewers sync.WaitGroup
			for range 10 {
				viewers.Go(func() { view() })
			}
			viewers.Wait()
			time.Sleep(2 * time.Second)
		}
		if looks < 2 || looks > 3 {
			t.Errorf("%d looks in 12 s, want 2 or 3", looks)
		}
		rep := view()
		if len(rep.Database.Slots) != 2 || !strings.Contains(strings.Join(rep.Verdict.Reasons, ","), "2 dead letters") {
			t.Errorf("got %+v", rep)
		}
		time.Sleep(time.Hour)
		before := looks
		fail = errors.New("connection refused")
		if rep = view(); rep.Database.Error != "connection refused" || len(rep.Database.Slots) != 2 {
			t.Errorf("got %+v, want the error, and what was seen before", rep.Database)
		}
		for range 5 {
			time.Sleep(2 * time.Second)
			view()
		}
		if looks != before+1 {
			t.Errorf("%d looks in 10 s at a database that is down, want 1", looks-before)
		}
	})
}

// The page is in the binary as it is: nothing of a row is ever in its markup.
func TestPageFiles(t *testing.T) {
	h := Handler(Config{Version: "<b>1.2.3", Database: seen}, troubled(), prometheus.NewRegistry())
	for path, contentType := range map[string]string{"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript", "/chart.js": "text/javascript", "/icon.svg": "image/svg+xml"} {
		code, header, body := get(t, h, "GET", path)
		if code != 200 || !strings.HasPrefix(header.Get("Content-Type"), contentType) || len(body) == 0 || header.Get("ETag") == "" || header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: got %d %v", path, code, header)
		}
		for _, bad := range []string{"http://", "https://", "innerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=\"", "onclick", "worker-1", "alert("} {
			if strings.Contains(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), bad) {
				t.Errorf("%s contains %s", path, bad)
			}
		}
		req := httptest.NewRequest("GET", path, nil)
		req.Header.Set("If-None-Match", header.Get("ETag"))
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		if rec.Code != http.StatusNotModified {
			t.Errorf("%s again: got %d, want 304", path, rec.Code)
		}
	}
}
