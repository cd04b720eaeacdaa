package relay

import "context"

// Turn lets one goroutine at a time do what waits or does I/O. A mutex would make the others wait
// without an end; the wait for a turn ends with a context.
type Turn chan struct{}

// NewTurn returns a turn that nobody has.
func NewTurn() Turn { return make(Turn, 1) }

// Take waits until the turn is ours. When ctx ends before that, it returns the cause.
func (t Turn) Take(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Give ends the turn that Take has begun.
func (t Turn) Give() { <-t }

// Wake wakes the goroutine that waits, or will wait, on a channel of capacity one.
func Wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
