package interop

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/peers"
)

// python returns the interpreter that has the library.
func python(t *testing.T) string {
	t.Helper()
	// a download, and other processes that wait for it
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	path, err := peers.Library(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
