package aws

import (
	"context"
	"errors"
	"strconv"
)

// errNotNamed is the error of an entry that an answer names neither as taken nor as failed.
var errNotNamed = errors.New("the answer does not name the message")

// taken sorts an answer's entries.
type taken struct {
	failed map[int]error
}

func newTaken(n int) *taken {
	t := &taken{failed: make(map[int]error, n)}
	for i := range n {
		t.failed[i] = errNotNamed
	}
	return t
}

func (t *taken) acknowledge(id *string) {
	if n, ok := t.index(id); ok && errors.Is(t.failed[n], errNotNamed) {
		delete(t.failed, n)
	}
}

func (t *taken) fail(id *string, err error) {
	if n, ok := t.index(id); ok {
		t.failed[n] = err
	}
}

// index is that of an entry, by the id that we gave it.
func (t *taken) index(id *string) (int, bool) {
	if id == nil {
		return 0, false
	}
	n, err := strconv.Atoi(*id)
	return n, err == nil
}

// causeOf is why ctx ended, where the error comes of that.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
