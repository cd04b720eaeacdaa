package sinktest_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errTransient = errors.New("leader moved")

func delivered(s *sinktest.Script) []sinktest.Delivered {
	var out []sinktest.Delivered
	for _, rec := range s.Taken() {
		out = append(out, sinktest.Delivered{Topic: rec.Topic, Key: rec.MessageKey(), Value: rec.Value, Headers: rec.Headers})
	}
	return out
}

// The script keeps the contract that it is used to test against.
func TestScriptKeepsTheContract(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{New: func(testing.TB) *sinktest.Target {
		s := sinktest.NewScript("script")
		return &sinktest.Target{
			Sink:    s,
			Topic:   "OrderCreated",
			Consume: func(testing.TB) []sinktest.Delivered { return delivered(s) },
			Refused: func(key string) (*relay.Record, relay.Reason) {
				rec := sinktest.NewRecord("OrderCreated", key, 0, 0)
				s.OnEvent(rec.EventID).Refuse(relay.ReasonTooLarge, errors.New("too large"))
				return rec, relay.ReasonTooLarge
			},
			Stall: func(testing.TB) func() {
				cue := s.OnCall(0)
				gate := cue.Block()
				return func() { cue.Stop(); gate.Release() }
			},
			Faults: map[string]func(testing.TB){
				"down": func(t testing.TB) {
					s.Down(errTransient)
					defer s.Down(nil)
					if err := s.WaitOffered(t.Context(), len(s.Offered())+200); err != nil {
						t.Error(err)
					}
				},
				"lost acknowledgements": func(t testing.TB) {
					cue := s.OnKey("lane1-a").Lose(errTransient)
					defer cue.Stop()
					if err := s.WaitTaken(t.Context(), len(s.Taken())+200); err != nil {
						t.Error(err)
					}
				},
			},
		}
	}})
}

func TestScript(t *testing.T) {
	a, b := sinktest.Records("t", "a", 0, 3), sinktest.Records("t", "b", 0, 3)
	batch := sinktest.Interleave(a, b) // a0 b0 a1 b1 a2 b2
	all := []string{"a0", "b0", "a1", "b1", "a2", "b2"}
	name := map[relay.UUID]string{}
	for i, rec := range batch {
		name[rec.EventID] = all[i]
	}
	refused := errors.New("refused")
	for _, tc := range []struct {
		name    string
		cue     func(*sinktest.Script)
		failed  []string // by the first Publish
		refused []string
		taken   []string
		whole   bool // the error is the call's own
	}{
		{"nothing", func(*sinktest.Script) {}, nil, nil, all, false},
		{"key", func(s *sinktest.Script) { s.OnKey("a").Fail(errTransient) }, []string{"a0", "a1", "a2"}, nil, []string{"b0", "b1", "b2"}, false},
		{"key once", func(s *sinktest.Script) { s.OnKey("a").Times(1).Fail(errTransient) }, []string{"a0", "a1", "a2"}, nil, []string{"b0", "a1", "b1", "a2", "b2"}, false},
		{"event in the middle", func(s *sinktest.Script) { s.OnEvent(b[1].EventID).Fail(errTransient) }, []string{"b1", "b2"}, nil, []string{"a0", "b0", "a1", "a2", "b2"}, false},
		{"refused", func(s *sinktest.Script) { s.OnEvent(a[1].EventID).Refuse(relay.ReasonRejected, refused) }, []string{"a2"}, []string{"a1"}, []string{"a0", "b0", "b1", "b2"}, false},
		{"refused behind one that failed", func(s *sinktest.Script) {
			s.OnEvent(a[0].EventID).Fail(errTransient)
			s.OnEvent(a[1].EventID).Refuse(relay.ReasonRejected, refused)
		}, []string{"a0", "a1", "a2"}, nil, []string{"b0", "b1", "b2"}, false},
		{"lost", func(s *sinktest.Script) { s.OnEvent(a[1].EventID).Lose(errTransient) }, []string{"a1", "a2"}, nil, all, false},
		{"call", func(s *sinktest.Script) { s.OnCall(1).Fail(errTransient) }, all, nil, nil, false},
		{"another call", func(s *sinktest.Script) { s.OnCall(2).Fail(errTransient) }, nil, nil, all, false},
		{"whole batch", func(s *sinktest.Script) { s.OnCall(1).FailBatch(errTransient) }, all, nil, nil, true},
		{"whole batch by key", func(s *sinktest.Script) { s.OnKey("b").FailBatch(errTransient) }, all, nil, nil, true},
		{"whole batch by a key that is not there", func(s *sinktest.Script) { s.OnKey("z").FailBatch(errTransient) }, nil, nil, all, false},
		{"down", func(s *sinktest.Script) { s.Down(errTransient) }, all, nil, nil, true},
		{"stopped", func(s *sinktest.Script) { s.OnKey("a").Fail(errTransient).Stop() }, nil, nil, all, false},
		{"first of two cues", func(s *sinktest.Script) {
			s.OnEvent(a[0].EventID).Refuse(relay.ReasonRejected, refused)
			s.OnKey("a").Fail(errTransient)
		}, []string{"a1", "a2"}, []string{"a0"}, []string{"b0", "b1", "b2"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := sinktest.NewScript("script")
			tc.cue(s)
			err := s.Publish(t.Context(), batch)
			var be *relay.BatchError
			if got := errors.As(err, &be); err != nil && got == tc.whole {
				t.Errorf("error %T: whole %v", err, tc.whole)
			}
			again, no := sinktest.Failed(batch, err)
			names := func(recs []*relay.Record) (out []string) {
				for _, rec := range recs {
					out = append(out, name[rec.EventID])
				}
				return out
			}
			if !slices.Equal(names(again), tc.failed) {
				t.Errorf("failed %v, want %v", names(again), tc.failed)
			}
			if !slices.Equal(names(no), tc.refused) {
				t.Errorf("refused %v, want %v", names(no), tc.refused)
			}
			if !slices.Equal(names(s.Taken()), tc.taken) {
				t.Errorf("taken %v, want %v", names(s.Taken()), tc.taken)
			}
			if got := len(s.Offered()); got != len(batch) {
				t.Errorf("%d offers, want %d", got, len(batch))
			}
		})
	}
}

func TestScriptDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sinktest.NewScript("script")
		s.OnKey("a").Times(1).Delay(3 * time.Second)
		for _, want := range []time.Duration{3 * time.Second, 0} {
			start := time.Now()
			if err := s.Publish(t.Context(), sinktest.Records("t", "a", 0, 2)); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != want {
				t.Errorf("took %s, want %s", got, want)
			}
		}
		s.OnCall(0).Delay(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Publish(ctx, sinktest.Records("t", "a", 2, 2)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
		if got := len(s.Taken()); got != 4 {
			t.Errorf("%d taken, want the 4 of the first two calls", got)
		}
	})
}

func TestScriptBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sinktest.NewScript("script")
		gate := s.OnKey("a").Block()
		result := make(chan error, 2)
		for range 2 {
			go func() { result <- s.Publish(t.Context(), sinktest.Records("t", "a", 0, 1)) }()
		}
		<-gate.Reached
		synctest.Wait()
		if err := s.Publish(t.Context(), sinktest.Records("t", "b", 0, 1)); err != nil {
			t.Errorf("another key: %v", err)
		}
		if len(result) != 0 || len(s.Taken()) != 1 {
			t.Errorf("%d calls back, %d records taken, want 0 and 1 before the release", len(result), len(s.Taken()))
		}
		gate.Release()
		for range 2 {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		if calls, atOnce := s.Calls(); calls != 3 || atOnce != 3 {
			t.Errorf("%d calls, %d at once, want 3 and 3", calls, atOnce)
		}

		s.OnKey("c").Block()
		go func() { result <- s.Publish(t.Context(), sinktest.Records("t", "c", 0, 1)) }()
		synctest.Wait()
		if err := s.Close(); err != nil || !s.Closed() {
			t.Errorf("close: %v, closed %v", err, s.Closed())
		}
		if err := <-result; !errors.Is(err, sinktest.ErrScriptClosed) {
			t.Errorf("got %v, want ErrScriptClosed", err)
		}
	})
}

// A checker that finds nothing wrong proves nothing: CheckOrder must see each kind of damage.
func TestCheckOrder(t *testing.T) {
	for _, tc := range []struct {
		name    string
		seqs    []int
		want    int
		repeats bool
		bad     bool
	}{
		{"in order", []int{0, 1, 2}, 3, false, false},
		{"more than acknowledged", []int{0, 1, 2}, 1, false, false},
		{"gap", []int{0, 2}, 2, true, true},
		{"missing end", []int{0, 1}, 3, true, true},
		{"missing start", []int{1, 2}, 3, true, true},
		{"swapped", []int{1, 0, 2}, 3, true, true},
		{"closed late", []int{0, 2, 1, 2}, 3, true, true},
		{"suffix repeated", []int{0, 1, 2, 1, 2}, 3, true, false},
		{"suffix repeated, not allowed", []int{0, 1, 2, 1, 2}, 3, false, true},
		{"repeat stops short", []int{0, 1, 2, 1}, 3, true, true},
		{"gap in the repeat", []int{0, 1, 2, 0, 2}, 3, true, true},
		{"nothing", nil, 1, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []sinktest.Delivered
			for _, seq := range tc.seqs {
				rec := sinktest.NewRecord("t", "k", seq, 0)
				got = append(got, sinktest.Delivered{Topic: "t", Key: "k", Value: rec.Value})
			}
			probe := &probe{TB: t}
			sinktest.CheckOrder(probe, got, map[string]int{"k": tc.want}, tc.repeats)
			if probe.failed != tc.bad {
				t.Errorf("places %v: complained %v, want %v", tc.seqs, probe.failed, tc.bad)
			}
		})
	}
}

// probe is a testing.TB that remembers a complaint instead of failing.
type probe struct {
	testing.TB
	failed bool
}

func (p *probe) Errorf(string, ...any) { p.failed = true }
func (p *probe) Helper()               {}
