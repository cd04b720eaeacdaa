package watch

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

const (
	// changesKept is how many changes are remembered.
	changesKept = 50
	// changeRepeats is within what time the same change is counted rather than listed again, so
	// that what flaps does not push out the rest.
	changeRepeats = time.Minute
	// shownLength is how much of an error the status page shows, in characters.
	shownLength = 400
)

// changeLog remembers the last changes.
type changeLog struct {
	mu  sync.Mutex     // guards all
	all []relay.Change // the oldest first
}

// add notes a change that happens now.
func (l *changeLog) add(c relay.Change) {
	c.Time, c.Text, c.Times = time.Now(), shown(c.Text), max(1, c.Times)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.all) - 1; i >= 0 && c.Time.Sub(l.all[i].Time) < changeRepeats; i-- {
		if was := l.all[i]; was.Kind == c.Kind && was.Slot == c.Slot && was.Sink == c.Sink && was.Text == c.Text {
			c.Times += was.Times
			l.all = slices.Delete(l.all, i, i+1)
			break
		}
	}
	if len(l.all) == changesKept {
		l.all = slices.Delete(l.all, 0, 1)
	}
	l.all = append(l.all, c)
}

// newest returns the changes, the newest first.
func (l *changeLog) newest() []relay.Change {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Clone(l.all)
	slices.Reverse(all)
	return all
}

// shown makes a text fit for the page: one line, of bounded length.
func shown(text string) string {
	return term.Cut(term.Text(strings.Join(strings.Fields(text), " ")), shownLength+1)
}

// Changes returns the last changes of state, at most 50, the newest first.
func (w *Watch) Changes() []relay.Change { return w.changes.newest() }
