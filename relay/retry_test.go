package relay

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetry(t *testing.T) {
	errNot, errNever := errors.New("not yet"), errors.New("never")
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name  string
			fails []error       // of the first calls; the next one succeeds
			end   time.Duration // of the context; 0: never
			want  error
			calls int
			waits time.Duration // at the longest, and a third less at the shortest
		}{
			{"AtOnce", nil, 0, nil, 1, 0},
			{"UntilItWorks", []error{errNot, errNot, errNot}, 0, nil, 4, 7 * time.Second},
			{"NotAgain", []error{errNot, errNever}, 0, errNever, 2, time.Second},
			{"EndsInAWait", []error{errNot, errNot, errNot, errNot, errNot}, 500 * time.Millisecond, errNot, 1, 750 * time.Millisecond},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			if c.end > 0 {
				time.AfterFunc(c.end, cancel)
			}
			began, calls := time.Now(), 0
			var waited time.Duration
			err := Retry(ctx, Backoff{Min: time.Second, Max: time.Minute}, func() error {
				if calls++; calls <= len(c.fails) {
					return c.fails[calls-1]
				}
				return nil
			}, func(err error, wait time.Duration) bool {
				waited += wait
				return err != errNever
			})
			took := time.Since(began)
			if !errors.Is(err, c.want) || calls != c.calls || took > c.waits || took < c.waits-c.waits/3-time.Millisecond {
				t.Errorf("%s: got %v after %d calls and %s, want %v after %d and %s", c.name, err, calls, took, c.want, c.calls, c.waits)
			}
			if c.want == nil && took != waited {
				t.Errorf("%s: waited %s, and again was told of %s", c.name, took, waited)
			}
			cancel()
		}
	})
}

// A stop that comes while do runs is not asked about: nobody logs that something is tried again.
func TestRetryEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	errNot := errors.New("not yet")
	err := Retry(ctx, Backoff{Min: time.Hour, Max: time.Hour}, func() error { cancel(); return errNot }, func(error, time.Duration) bool {
		t.Error("asked whether to try again")
		return true
	})
	if !errors.Is(err, errNot) {
		t.Errorf("got %v, want %v", err, errNot)
	}
}
