package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/natstest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// patience bounds what must come in the end, on a machine that runs other tests too.
const patience = 3 * time.Minute

func TestMain(m *testing.M) {
	natstest.Main()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	defer closePrivate()
	return brokertest.Run(pgtest.Closing(m))
}

// newRand returns the test's source of random choices, and prints its seed.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("SAGAZ_E2E_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SAGAZ_E2E_SEED=%s: %v", text, err)
		}
	}
	t.Logf("SAGAZ_E2E_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// eventually calls look until it returns "", which means that all is well, and fails when it does
// not within the time. What look shows otherwise is the state.
func eventually(t testing.TB, within time.Duration, what string, look func() (wrong string)) {
	t.Helper()
	deadline := time.Now().Add(within)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		wrong := look()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, within, wrong)
		}
		select {
		case <-time.After(pause):
		case <-t.Context().Done():
			t.Fatalf("%s: the test ended: %s", what, wrong)
		}
	}
}
