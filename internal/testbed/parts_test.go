package testbed

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestTake(t *testing.T) {
	has := func(from string) source {
		return func(context.Context, io.Writer) (taken, error) { return taken{from: from}, nil }
	}
	fails := func(err error) source {
		return func(context.Context, io.Writer) (taken, error) { return taken{}, err }
	}
	for _, tc := range []struct {
		name    string
		sources []source
		from    string
		err     string
		log     string
	}{
		{name: "FirstThatHasIt", sources: []source{fails(errUnavailable), has("docker"), has("machine")}, from: "docker"},
		{
			name: "BrokenIsLoggedAndPassed", sources: []source{fails(errors.New("no image")), has("machine")}, from: "machine",
			log: "testenv: Kafka: no image; trying the next source\n",
		},
		{name: "NotAvailableIsSilent", sources: []source{fails(errUnavailable), fails(errUnavailable), has("machine")}, from: "machine"},
		{
			name: "AskedForByName", sources: []source{fails(&fatal{errors.New("SAGAZ_TEST_KAFKA: refused")}), has("machine")},
			err: "Kafka: SAGAZ_TEST_KAFKA: refused",
		},
		{
			name: "BrokenIsReported", sources: []source{fails(errors.New("no image")), fails(errors.New("no java; apt-get it"))},
			err: "Kafka cannot be had: no java; apt-get it", log: "testenv: Kafka: no image; trying the next source\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log bytes.Buffer
			got, err := Part{"Kafka", tc.sources}.take(t.Context(), &log)
			if tc.err != "" && (err == nil || err.Error() != tc.err) {
				t.Errorf("got error %v, want %q", err, tc.err)
			}
			if tc.err == "" && err != nil {
				t.Errorf("got error %v", err)
			}
			if got.from != tc.from {
				t.Errorf("got it from %q, want %q", got.from, tc.from)
			}
			if log.String() != tc.log {
				t.Errorf("got log %q, want %q", log.String(), tc.log)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	parts, err := Choose("14, 18", "rabbitmq", t.TempDir(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	if got, want := strings.Join(names, "|"), "PostgreSQL 14|PostgreSQL 18|RabbitMQ"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if parts, err := Choose("none", "none", t.TempDir(), io.Discard); err != nil || len(parts) != 0 {
		t.Errorf("none: got %v, %v", parts, err)
	}
	for _, tc := range [][2]string{{"9", "kafka"}, {"17", "pulsar"}} {
		if _, err := Choose(tc[0], tc[1], t.TempDir(), io.Discard); err == nil {
			t.Errorf("%v: got no error", tc)
		}
	}
}

// What came up comes down, whatever became of the rest.
func TestBringUp(t *testing.T) {
	closed := make(chan string, 3)
	up := func(name string) Part {
		return Part{name, []source{func(context.Context, io.Writer) (taken, error) {
			return taken{from: "here", env: []string{name + "=1"}, close: func() error { closed <- name; return nil }}, nil
		}}}
	}
	waits := Part{"waits", []source{func(ctx context.Context, _ io.Writer) (taken, error) {
		<-ctx.Done()
		return taken{}, ctx.Err()
	}}}
	broken := Part{"broken", []source{func(context.Context, io.Writer) (taken, error) { return taken{}, errors.New("no such thing") }}}

	t.Run("All", func(t *testing.T) {
		env, down, err := BringUp([]Part{up("a"), up("b")}, nil, io.Discard)
		if err != nil || len(env) != 2 {
			t.Fatalf("got %v, %v", env, err)
		}
		down()
		if len(closed) != 2 {
			t.Fatalf("%d closed, want 2", len(closed))
		}
		<-closed
		<-closed
	})
	t.Run("OneFails", func(t *testing.T) {
		_, down, err := BringUp([]Part{up("a"), waits, broken}, nil, io.Discard)
		if err == nil || err.Error() != "broken cannot be had: no such thing" {
			t.Errorf("got %v, want what broke", err)
		}
		down()
		<-closed
	})
	t.Run("Interrupted", func(t *testing.T) {
		signals := make(chan os.Signal, 1)
		signals <- syscall.SIGTERM
		_, down, err := BringUp([]Part{up("a"), waits}, signals, io.Discard)
		if got := ExitCode(err); got != 128+15 {
			t.Errorf("got exit code %d (%v), want 143", got, err)
		}
		down()
		<-closed
	})
}

func TestChooseTools(t *testing.T) {
	parts, err := ChooseTools("bwrap, /etc/ssl/certs/ca-certificates.crt")
	if err != nil || len(parts) != 2 || parts[0].name != "bubblewrap" {
		t.Errorf("got %v, %v", parts, err)
	}
	if parts, err := ChooseTools(""); len(parts) != 0 || err != nil {
		t.Errorf("none: got %v, %v", parts, err)
	}
	if _, err := ChooseTools("bwarp"); err == nil || !strings.Contains(err.Error(), "bwrap") {
		t.Errorf("got %v, want an error with the names", err)
	}
	here := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(here, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if up, err := toolHere(here)(t.Context(), io.Discard); err != nil || up.from != here {
		t.Errorf("a file that is there: %v, %v", up, err)
	}
	for _, name := range []string{here + "-not", "no-program-of-this-name"} {
		if _, err := toolHere(name)(t.Context(), io.Discard); !errors.Is(err, errUnavailable) {
			t.Errorf("%s: got %v, want errUnavailable", name, err)
		}
	}
}
