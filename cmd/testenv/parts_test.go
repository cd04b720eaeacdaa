package main

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
	"time"
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
			name: "BrokenIsSaidAndPassed", sources: []source{fails(errors.New("no image")), has("machine")}, from: "machine",
			log: "testenv: Kafka: no image; trying the next source\n",
		},
		{name: "NotAvailableIsSilent", sources: []source{fails(errUnavailable), fails(errUnavailable), has("machine")}, from: "machine"},
		{
			name: "AskedForByName", sources: []source{fails(&fatal{errors.New("SAGAZ_TEST_KAFKA: refused")}), has("machine")},
			err: "Kafka: SAGAZ_TEST_KAFKA: refused",
		},
		{
			name: "BrokenIsSaid", sources: []source{fails(errors.New("no image")), fails(errors.New("no java; apt-get it"))},
			err: "Kafka cannot be had: no java; apt-get it", log: "testenv: Kafka: no image; trying the next source\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log bytes.Buffer
			got, err := part{"Kafka", tc.sources}.take(t.Context(), &log)
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
	parts, err := choose("14, 18", "rabbitmq", t.TempDir(), io.Discard)
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
	if parts, err := choose("none", "none", t.TempDir(), io.Discard); err != nil || len(parts) != 0 {
		t.Errorf("none: got %v, %v", parts, err)
	}
	for _, tc := range [][2]string{{"9", "kafka"}, {"17", "pulsar"}} {
		if _, err := choose(tc[0], tc[1], t.TempDir(), io.Discard); err == nil {
			t.Errorf("%v: got no error", tc)
		}
	}
}

// What came up comes down, whatever became of the rest.
func TestBringUp(t *testing.T) {
	closed := make(chan string, 3)
	up := func(name string) part {
		return part{name, []source{func(context.Context, io.Writer) (taken, error) {
			return taken{from: "here", env: []string{name + "=1"}, close: func() error { closed <- name; return nil }}, nil
		}}}
	}
	waits := part{"waits", []source{func(ctx context.Context, _ io.Writer) (taken, error) {
		<-ctx.Done()
		return taken{}, ctx.Err()
	}}}
	broken := part{"broken", []source{func(context.Context, io.Writer) (taken, error) { return taken{}, errors.New("no such thing") }}}

	t.Run("All", func(t *testing.T) {
		env, down, err := bringUp([]part{up("a"), up("b")}, nil, io.Discard)
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
		_, down, err := bringUp([]part{up("a"), waits, broken}, nil, io.Discard)
		if err == nil || err.Error() != "broken cannot be had: no such thing" {
			t.Errorf("got %v, want what broke", err)
		}
		down()
		<-closed
	})
	t.Run("Interrupted", func(t *testing.T) {
		signals := make(chan os.Signal, 1)
		signals <- syscall.SIGTERM
		_, down, err := bringUp([]part{up("a"), waits}, signals, io.Discard)
		if got := exitCode(err); got != 128+15 {
			t.Errorf("got exit code %d (%v), want 143", got, err)
		}
		down()
		<-closed
	})
}

func TestRunCommand(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 128 + 15, `test "$SAID" = yes`: 0} {
		if got, _ := runCommand([]string{"sh", "-c", script}, []string{"SAID=yes"}, nil); got != want {
			t.Errorf("%s: got exit code %d, want %d", script, got, want)
		}
	}
	if got, err := runCommand([]string{"no-such-program"}, nil, nil); got != 127 || err == nil {
		t.Errorf("got %d, %v, want 127 and an error", got, err)
	}
	t.Run("SignalReachesGrandchildren", func(t *testing.T) {
		dir := t.TempDir()
		signals := make(chan os.Signal, 1)
		go func() {
			for _, err := os.Stat(dir + "/up"); err != nil; _, err = os.Stat(dir + "/up") {
				time.Sleep(10 * time.Millisecond)
			}
			signals <- os.Interrupt
		}()
		// The shell waits for a grandchild that only a signal ends, and ends itself with that.
		code, err := runCommand([]string{"sh", "-c", `sh -c "trap 'touch $DIR/got; exit' INT; touch $DIR/up; while :; do sleep 0.05; done" & wait`},
			[]string{"DIR=" + dir}, signals)
		if code != 128+2 {
			t.Errorf("got %d, %v, want 130", code, err)
		}
	})
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want int
	}{
		{[]string{"-h"}, 0},
		{[]string{}, 2},
		{[]string{"-no-such-flag"}, 2},
		{[]string{"-postgres=9", "--", "true"}, 2},
		{[]string{"-postgres=none", "-brokers=none", "--", "sh", "-c", "exit 5"}, 5},
	} {
		var log bytes.Buffer
		if got := run(tc.args, &log); got != tc.want {
			t.Errorf("%q: got exit code %d, want %d\n%s", tc.args, got, tc.want, &log)
		}
	}
}

func TestChooseTools(t *testing.T) {
	parts, err := chooseTools("bwrap, /etc/ssl/certs/ca-certificates.crt")
	if err != nil || len(parts) != 2 || parts[0].name != "bubblewrap" {
		t.Errorf("got %v, %v", parts, err)
	}
	if parts, err := chooseTools(""); len(parts) != 0 || err != nil {
		t.Errorf("none: got %v, %v", parts, err)
	}
	if _, err := chooseTools("bwarp"); err == nil || !strings.Contains(err.Error(), "bwrap") {
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
