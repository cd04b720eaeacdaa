package main

import (
	"bytes"
	"os"
	"testing"
	"time"
)

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
