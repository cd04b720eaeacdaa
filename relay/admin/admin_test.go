package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shown is a relay in a certain state.
type shown struct {
	status  func() watch.Status
	history watch.History
	changes []relay.Change
}

func (s shown) Status() watch.Status    { return s.status() }
func (s shown) History() watch.History  { return s.history }
func (s shown) Changes() []relay.Change { return s.changes }

func statusOf(slot watch.SlotStatus) shown {
	slot.Slot = "sagaz_outbox"
	return shown{status: func() watch.Status {
		return watch.Status{WorkerID: "worker-1", Slots: []watch.SlotStatus{slot}, Sinks: []watch.SinkStatus{{Sink: "kafka", Up: false, LastError: "no leader"}}}
	}}
}

func handler(r Relay) http.Handler { return Handler(DefaultConfig(), r, prometheus.NewRegistry()) }

func get(t *testing.T, h http.Handler, method, path string) (code int, header http.Header, body string) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
	return rec.Code, rec.Header(), rec.Body.String()
}

func TestReady(t *testing.T) {
	for _, tt := range []struct {
		name string
		slot watch.SlotStatus
		code int
		text string
	}{
		{"Owner", watch.SlotStatus{Role: relay.Owner, Streaming: true, StreamSince: 3600}, 200, `{"status":"ready"}`},
		{"Standby", watch.SlotStatus{Role: relay.Standby}, 200, `{"status":"ready"}`},
		{"OwnerWhileTheBrokerIsDown", watch.SlotStatus{Role: relay.Owner, Streaming: true, LagSeconds: 1000}, 200, `{"status":"ready"}`},
		{"OwnerReconnecting", watch.SlotStatus{Role: relay.Owner, StreamSince: 5}, 200, `{"status":"ready"}`},
		{"OwnerWithoutConnection", watch.SlotStatus{Role: relay.Owner, Mode: relay.ModeCDC, StreamSince: 60}, 503, "no replication connection for 60 s"},
		{"Starting", watch.SlotStatus{Role: relay.Starting}, 503, "the database has not answered yet"},
		{"Draining", watch.SlotStatus{Role: relay.Draining}, 503, "stopping"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := handler(statusOf(tt.slot))
			code, header, body := get(t, h, "GET", "/health/ready")
			if code != tt.code || !strings.Contains(body, tt.text) || header.Get("Content-Type") != "application/json" || header.Get("Cache-Control") != "no-store" {
				t.Errorf("/health/ready: got %d %s %v, want %d and %s", code, body, header, tt.code, tt.text)
			}
			// Alive is alive, whatever the state.
			if code, _, body := get(t, h, "GET", "/health/live"); code != 200 || !strings.Contains(body, "alive") {
				t.Errorf("/health/live: got %d %s", code, body)
			}
		})
	}
}

// Of several slots the one that does not move is named, and a relay that has none is ready.
func TestReadyWithSeveralSlots(t *testing.T) {
	owner := watch.SlotStatus{Role: relay.Owner, Mode: relay.ModeCDC, Streaming: true, StreamSince: 3600}
	stalled, cut := owner, owner
	stalled.Stalled = 90
	cut.Streaming, cut.StreamSince = false, 60
	standby, gives := watch.SlotStatus{Role: relay.Standby}, watch.SlotStatus{Role: relay.Draining, GivesBack: true}
	for _, tt := range []struct {
		name  string
		slots []watch.SlotStatus
		code  int
		text  string
	}{
		{"OwnsNone", []watch.SlotStatus{standby, standby, standby, standby}, 200, `{"status":"ready"}`},
		{"OwnsOne", []watch.SlotStatus{standby, owner, standby, standby}, 200, `{"status":"ready"}`},
		{"GivesOneBack", []watch.SlotStatus{owner, gives, standby, standby}, 200, `{"status":"ready"}`},
		{"OneStalls", []watch.SlotStatus{owner, standby, stalled, owner}, 503, `"problems":["slot s_2of4: WAL is written and nothing has moved for 90 s"]`},
		{"TwoAreCut", []watch.SlotStatus{owner, cut, cut, owner}, 503, `"problems":["slot s_1of4, s_2of4: owned, but no replication connection for 60 s"]`},
		{"TwoKinds", []watch.SlotStatus{cut, stalled, standby, gives}, 503, `"problems":["slot s_0of4: owned, but no replication connection for 60 s","slot s_1of4: WAL is written and nothing has moved for 90 s"]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for i := range tt.slots {
				tt.slots[i].Slot = fmt.Sprintf("s_%dof4", i)
			}
			code, _, body := get(t, handler(shown{status: func() watch.Status { return watch.Status{Slots: tt.slots} }}), "GET", "/health/ready")
			if code != tt.code || !strings.Contains(body, tt.text) {
				t.Errorf("got %d %s, want %d and %s", code, body, tt.code, tt.text)
			}
		})
	}
}

func TestStatusJSON(t *testing.T) {
	h := handler(statusOf(watch.SlotStatus{Role: relay.Owner, Epoch: 7, Watermark: "16/B374D848"}))
	code, _, body := get(t, h, "GET", "/status.json")
	var got struct {
		WorkerID string `json:"worker_id"`
		Slots    []struct {
			Slot, Role, Watermark string
			Epoch                 int
		}
		Sinks []struct {
			Sink      string
			Up        bool
			LastError string `json:"last_error"`
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != 200 {
		t.Fatalf("got %d %s: %v", code, body, err)
	}
	if got.WorkerID != "worker-1" || len(got.Slots) != 1 || got.Slots[0].Role != "owner" || got.Slots[0].Epoch != 7 || got.Slots[0].Watermark != "16/B374D848" {
		t.Errorf("got %+v", got)
	}
	if len(got.Sinks) != 1 || got.Sinks[0].Up || got.Sinks[0].LastError != "no leader" {
		t.Errorf("sinks: got %+v", got.Sinks)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	watch.NewMetrics(reg, "worker-1", watch.DefaultConfig())
	code, _, body := get(t, Handler(DefaultConfig(), statusOf(watch.SlotStatus{}), reg), "GET", "/metrics")
	if code != 200 || !strings.Contains(body, "\noutbox_pending_events_total 0\n") || !strings.Contains(body, `outbox_batch_size{worker_id="worker-1"} 0`) {
		t.Errorf("got %d %s", code, body)
	}
}

func TestOthers(t *testing.T) {
	h := handler(statusOf(watch.SlotStatus{}))
	for _, tt := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/nowhere", 404},
		{"GET", "/health", 404},
		{"POST", "/health/live", 405},
		{"DELETE", "/status.json", 405},
		{"POST", "/", 405},
		{"PUT", "/nowhere", 405},
		{"HEAD", "/", 200},
		{"GET", "/index.html", 404},
		{"GET", "/page/", 404},
		{"HEAD", "/health/ready", 503},
	} {
		h := h
		if tt.method == "HEAD" {
			h = handler(statusOf(watch.SlotStatus{Role: relay.Starting}))
		}
		if code, _, body := get(t, h, tt.method, tt.path); code != tt.code {
			t.Errorf("%s %s: got %d %s, want %d", tt.method, tt.path, code, body, tt.code)
		}
	}
}

func listen(t *testing.T, r Relay) *Server {
	t.Helper()
	s, err := Listen(Config{Addr: "127.0.0.1:0"}, r, prometheus.NewRegistry(), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A request that is under way when the server is stopped gets its answer before Serve returns.
func TestServeFinishesRequests(t *testing.T) {
	inside, answer := make(chan struct{}), make(chan struct{})
	s := listen(t, shown{status: func() watch.Status {
		close(inside)
		<-answer
		return watch.Status{WorkerID: "worker-1"}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	type reply struct {
		body string
		err  error
	}
	replies := make(chan reply, 1)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	go func() {
		resp, err := client.Get("http://" + s.Addr() + "/status.json")
		if err != nil {
			replies <- reply{err: err}
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		replies <- reply{string(body), err}
	}()
	<-inside
	cancel()
	// The listener closes first; a new request is refused from then on.
	for {
		resp, err := client.Get("http://" + s.Addr() + "/health/live")
		if err != nil {
			break
		}
		resp.Body.Close()
	}
	select {
	case err := <-served:
		t.Errorf("Serve returned %v with a request under way", err)
		served <- err
	default:
	}
	close(answer)
	if r := <-replies; r.err != nil || !strings.Contains(r.body, "worker-1") {
		t.Errorf("the request under way got %q, %v", r.body, r.err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeAfterTheEnd(t *testing.T) {
	s := listen(t, statusOf(watch.SlotStatus{}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Serve(ctx); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestListenSaysWhichSetting(t *testing.T) {
	s := listen(t, statusOf(watch.SlotStatus{}))
	defer s.listener.Close()
	_, err := Listen(Config{Addr: s.Addr()}, nil, nil, hclog.NewNullLogger())
	if err == nil || !strings.Contains(err.Error(), s.Addr()) || !strings.Contains(err.Error(), "METRICS_PORT") {
		t.Errorf("got %v, want the address and METRICS_PORT", err)
	}
}
