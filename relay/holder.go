package relay

import (
	"fmt"
	"strings"
	"time"
)

// Holder is a transaction for whose end the server waits before it makes a slot. It may be in any
// database of the server.
type Holder struct {
	PID                         int // 0 for a prepared transaction
	User, Database, Application string
	GID                         string        // of a prepared transaction
	Age                         time.Duration // 0 when the role may not see it
}

func (h Holder) String() string {
	var b strings.Builder
	if h.GID != "" {
		fmt.Fprintf(&b, "the prepared transaction %q (user %q, database %q)", h.GID, h.User, h.Database)
	} else {
		fmt.Fprintf(&b, "pid %d (user %q, database %q, application %q)", h.PID, h.User, h.Database, h.Application)
	}
	if h.Age > 0 {
		fmt.Fprintf(&b, ", open for %s", h.Age.Round(time.Second))
	}
	return b.String()
}

// Fix is how a person ends it.
func (h Holder) Fix() string {
	if h.GID != "" {
		return fmt.Sprintf("in database %q, COMMIT PREPARED or ROLLBACK PREPARED with that name", h.Database)
	}
	return fmt.Sprintf("let it end, or: SELECT pg_terminate_backend(%d)", h.PID)
}

// SayHolders is all of them in one line.
func SayHolders(holders []Holder) string {
	if len(holders) == 0 {
		return "the server, which names no transaction"
	}
	var all []string
	for _, h := range holders {
		all = append(all, h.String())
	}
	return strings.Join(all, "; ")
}
