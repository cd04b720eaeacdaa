package engine

import (
	"context"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// confirmation is how far the slot may move: the watermark, once the database has a note of it.
//
// A slot that is further on than any note was moved by somebody, or is another one under the same
// name. What was committed in between would never be delivered, so the note comes first. A crash
// between the two repeats nothing. It only leaves some WAL on the server until the next report.
type confirmation struct {
	window *window
	lease  relay.Marks

	mu sync.Mutex // guards what follows
	// The watermark that the database has a note of, and that may be reported to the server.
	at      relay.LSN
	noted   time.Time
	settled bool // the watermark has moved by marks since it was noted
}

// confirmed is the position that may be reported to the server.
func (c *confirmation) confirmed() relay.LSN {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// marked takes the marker's report: a mark has noted a position, and has moved the watermark or
// not.
func (c *confirmation) marked(at relay.LSN, moved bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = max(c.at, at)
	c.settled = c.settled || moved
}

// restart sets the position, of a slot that was made again.
func (c *confirmation) restart(at relay.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

// confirm notes the watermark in the database, and then lets it be reported to the server.
func (c *confirmation) confirm(ctx context.Context) error {
	c.mu.Lock()
	c.settled = false // before the watermark is read: a mark in between sets it again
	c.noted = time.Now()
	c.mu.Unlock()
	at := c.window.watermark()
	if at <= c.confirmed() {
		return nil
	}
	if err := c.lease.Confirm(ctx, at); err != nil {
		return err
	}
	c.marked(at, false)
	return nil
}

// confirmBytes is how far, and confirmAfter for how long, the watermark may run ahead of its note
// while only other tables are written to. Notes are WAL too, so an idle server must not be kept
// busy by them.
const (
	confirmBytes = 1 << 20
	confirmAfter = 10 * time.Second
)

// due reports whether the watermark should be noted.
func (c *confirmation) due() bool {
	watermark := c.window.watermark()
	c.mu.Lock()
	defer c.mu.Unlock()
	return watermark > c.at && (c.settled || watermark > c.at+confirmBytes || time.Since(c.noted) >= confirmAfter)
}
