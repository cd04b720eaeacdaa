package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/sagaz-relay/relay/relay"
)

// Each error is one of a few words; what is not about the sink has an empty one.
func TestFailureReasons(t *testing.T) {
	dial := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{relay.Refuse(relay.ReasonTooLarge, errors.New("x")), "too_large"},
		{fmt.Errorf("publish: %w", relay.Refuse(relay.ReasonUnroutable, errors.New("x"))), "unroutable"},
		{relay.Refuse("never heard of", errors.New("x")), "other"},
		{fmt.Errorf("publish: %w", context.DeadlineExceeded), "timeout"},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, "timeout"},
		{fmt.Errorf("kafka: %w", dial), "connection"},
		{io.ErrUnexpectedEOF, "connection"},
		{syscall.EPIPE, "connection"},
		{errors.New("leader moved"), "other"},
		{relay.ErrBehind, ""},
		{fmt.Errorf("publish: %w", relay.ErrFence), ""},
		{context.Canceled, ""},
	} {
		if got := failureOf(tt.err); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
	for _, reason := range refusals {
		if got := failureOf(relay.Refuse(reason, errors.New("x"))); got != string(reason) {
			t.Errorf("%s: got %q", reason, got)
		}
	}
}
