package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Each error is one of a few words; what says nothing about the sink is none.
func TestFailureReasons(t *testing.T) {
	dial := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{Refuse(ReasonTooLarge, errors.New("x")), "too_large"},
		{fmt.Errorf("publish: %w", Refuse(ReasonUnroutable, errors.New("x"))), "unroutable"},
		{Refuse("never heard of", errors.New("x")), "other"},
		{fmt.Errorf("publish: %w", context.DeadlineExceeded), "timeout"},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, "timeout"},
		{fmt.Errorf("kafka: %w", dial), "connection"},
		{io.ErrUnexpectedEOF, "connection"},
		{syscall.EPIPE, "connection"},
		{errors.New("leader moved"), "other"},
		{ErrBehind, ""},
		{fmt.Errorf("publish: %w", ErrFence), ""},
		{context.Canceled, ""},
	} {
		if got := failureOf(tt.err); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
	for _, reason := range refusals {
		if got := failureOf(Refuse(reason, errors.New("x"))); got != string(reason) {
			t.Errorf("%s: got %q", reason, got)
		}
	}
}

// Where a trace is recorded, the histograms name one for each bucket; nobody pays for it where there is none.
func TestExemplars(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := NewMetrics(reg, "worker-1").sink("kafka")
	traced := func(id, flags byte) *flight {
		f := &flight{rec: Record{EventType: "OrderPaid", Trace: TraceContext{TraceID: [16]byte{id}, SpanID: [8]byte{1}, Flags: flags}}, committed: TimestampOf(time.Now())}
		return f
	}
	examples := func(name string) (all []string) {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != name {
				continue
			}
			for _, m := range f.GetMetric() {
				for _, b := range m.GetHistogram().GetBucket() {
					if e := b.GetExemplar(); e != nil {
						all = append(all, fmt.Sprintf("%s=%.2s", e.GetLabel()[0].GetName(), e.GetLabel()[0].GetValue()))
						if e.GetValue() > b.GetUpperBound() || e.GetTimestamp() == nil {
							t.Errorf("%s: %v in the bucket up to %v", name, e, b.GetUpperBound())
						}
					}
				}
			}
		}
		return all
	}
	s.acked([]*flight{{rec: Record{EventType: "OrderPaid"}}, traced(1, 0)}, time.Millisecond) // none is recorded
	for _, name := range []string{"outbox_publish_duration_seconds", "outbox_commit_to_ack_seconds"} {
		if got := examples(name); len(got) != 0 {
			t.Errorf("%s: got %v, want none", name, got)
		}
	}
	s.acked([]*flight{traced(2, 0), traced(0x33, 1), traced(4, 1)}, 2*time.Millisecond)
	s.acked([]*flight{traced(0x55, 1)}, 2*time.Second)
	s.acked([]*flight{traced(0x66, 1)}, 3*time.Second) // the newest of its bucket
	if got, want := fmt.Sprint(examples("outbox_publish_duration_seconds")), "[trace_id=33 trace_id=66]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := examples("outbox_commit_to_ack_seconds"); len(got) == 0 || got[len(got)-1] != "trace_id=66" {
		t.Errorf("commit to ack: got %v", got)
	}
}
