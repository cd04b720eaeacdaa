package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/admin"
	"github.com/sagaz-relay/relay/relay/watch"
)

// relayThat is one in a certain state.
type relayThat struct{ status watch.Status }

func (r relayThat) Status() watch.Status    { return r.status }
func (r relayThat) History() watch.History  { return watch.History{} }
func (r relayThat) Changes() []relay.Change { return nil }

func TestHealth(t *testing.T) {
	ready := watch.Status{Slots: []watch.SlotStatus{{Slot: "s", Role: relay.Standby}}}
	starting := watch.Status{Slots: []watch.SlotStatus{{Slot: "s", Role: relay.Starting}}}
	for _, c := range []struct {
		name, path string
		status     watch.Status
		want       string
		wrong      string
	}{
		{"NotReady", "/health/ready", starting, "", "not ready: slot s: the database"},
		{"Ready", "/health/ready", ready, "ready\n", ""},
		{"LiveThoughNotReady", "/health/live", starting, "alive\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(admin.Handler(admin.DefaultConfig(), relayThat{c.status}, prometheus.NewRegistry()))
			defer s.Close()
			_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
			var out bytes.Buffer
			err := askHealth(t.Context(), &out, "127.0.0.1:"+port, c.path, false)
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("got error %v, want %q", err, c.wrong)
			}
			if got := out.String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	t.Run("AllAddresses", func(t *testing.T) { // ":8000" is a way to bind, not to ask
		s := httptest.NewServer(http.NotFoundHandler())
		defer s.Close()
		_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
		for _, bind := range []string{":" + port, "0.0.0.0:" + port, "[::]:" + port} {
			if err := askHealth(t.Context(), &bytes.Buffer{}, bind, "/health/ready", false); err == nil || !strings.Contains(err.Error(), "404") {
				t.Errorf("%s: got %v, want the server's 404", bind, err)
			}
		}
	})
	t.Run("Encrypted", func(t *testing.T) {
		s := httptest.NewTLSServer(admin.Handler(admin.DefaultConfig(), relayThat{ready}, prometheus.NewRegistry()))
		defer s.Close()
		var out bytes.Buffer
		if err := askHealth(t.Context(), &out, s.Listener.Addr().String(), "/health/ready", true); err != nil || out.String() != "ready\n" {
			t.Errorf("got %q, %v", out.String(), err)
		}
	})
	t.Run("None", func(t *testing.T) {
		var config configError
		if err := askHealth(context.Background(), &bytes.Buffer{}, "", "/health/ready", false); !errors.As(err, &config) || !strings.Contains(err.Error(), "METRICS_PORT") {
			t.Errorf("got %v, want a configuration error", err)
		}
	})
}
