package sessions_test

import (
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/relay/sessions"
)

// Long names are cut off as PostgreSQL cuts them, and those of a set's slots stay different.
func TestName(t *testing.T) {
	long := strings.Repeat("x", 55)
	for purpose, want := range map[string]string{
		"marks outbox":              "sagaz-relay marks outbox",
		"marks " + long:             ("sagaz-relay marks " + long)[:63],
		"marks " + long + "_3of4":   ("sagaz-relay marks " + long)[:58] + "_3of4",
		"marks " + long + "_31of32": ("sagaz-relay marks " + long)[:56] + "_31of32",
	} {
		if got := sessions.Name(purpose); got != want || len(got) > 63 {
			t.Errorf("%s: %s, want %s", purpose, got, want)
		}
	}
}
