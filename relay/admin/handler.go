package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
)

// Relay is what is shown. *watch.Watch is one.
type Relay interface {
	Status() watch.Status
	History() watch.History
	Changes() []relay.Change
}

var _ Relay = (*watch.Watch)(nil)

// Report is /status.json.
type Report struct {
	Time     time.Time `json:"time"` // the relay's clock
	Version  string    `json:"version"`
	Revision string    `json:"revision,omitempty"`
	watch.Status
	Ready    bool           `json:"ready"` // what /health/ready answers
	Verdict  watch.Verdict  `json:"verdict"`
	Database *sight         `json:"database"` // at most some seconds old
	Changes  []relay.Change `json:"changes"`  // the newest first
	History  watch.History  `json:"history"`
}

// Handler answers the paths that the package's comment lists.
func Handler(cfg Config, shown Relay, metrics prometheus.Gatherer) http.Handler {
	open, closed := http.NewServeMux(), http.NewServeMux()
	closed.Handle("GET /metrics", metricsHandler(cfg, metrics))
	look := &lookout{look: cfg.Database}
	status := newShared[*answer]()
	closed.HandleFunc("GET /status.json", func(w http.ResponseWriter, r *http.Request) {
		database := look.get(r.Context()) // first: it may take a moment
		a, err := status.get(r.Context(), func() *answer { return cfg.answer(http.StatusOK, report(cfg, shown, database)) })
		if err == nil { // otherwise the peer has gone
			a.write(w)
		}
	})
	for _, f := range files {
		closed.Handle("GET "+f.path, f)
	}
	open.HandleFunc("GET /health/live", func(w http.ResponseWriter, _ *http.Request) {
		cfg.answer(http.StatusOK, map[string]string{"status": "alive"}).write(w)
	})
	open.HandleFunc("GET /health/ready", func(w http.ResponseWriter, _ *http.Request) {
		problems := shown.Status().Problems()
		if len(problems) > 0 {
			cfg.answer(http.StatusServiceUnavailable, map[string]any{"status": "not ready", "problems": problems}).write(w)
			return
		}
		cfg.answer(http.StatusOK, map[string]string{"status": "ready"}).write(w)
	})
	open.Handle("/", guarded(cfg.Token, readOnly(closed)))
	return hardened(open)
}

// report gathers everything that the page shows.
func report(cfg Config, shown Relay, database *sight) Report {
	st := shown.Status()
	rep := Report{
		Time: time.Now().UTC(), Version: cfg.Version, Revision: cfg.Revision, Status: st, Ready: len(st.Problems()) == 0, Verdict: st.Verdict(),
		Database: database, Changes: shown.Changes(), History: shown.History(),
	}
	if database == nil || database.Database == nil {
		return rep
	}
	var dead int64
	for _, e := range database.Ledger {
		if e.State == string(relay.StateDead) {
			dead += e.Entries
		}
	}
	switch {
	case dead == 1:
		rep.Verdict.Add("1 dead letter waits for a person")
	case dead > 1:
		rep.Verdict.Add(fmt.Sprintf("%d dead letters wait for a person", dead))
	}
	return rep
}

// readOnly answers 405 to everything but GET and HEAD, also where nothing is.
func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "read only", http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	})
}

const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// hardened sets the headers that keep a browser from doing more than it has to.
func hardened(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// answer renders a body as JSON: without control characters, for terminals that show it.
func (c Config) answer(code int, body any) *answer {
	text, err := json.Marshal(body)
	if err != nil {
		code, text = http.StatusInternalServerError, []byte(`{}`)
	}
	text = term.JSON(text)
	if c.Redact != nil {
		text = c.Redact(text)
	}
	return &answer{code, http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}}, append(text, '\n')}
}
