package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// patience bounds what must come in the end, on a machine that runs other tests too.
const patience = time.Minute

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sagaz-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binaries.dir = dir
	defer closePrivate()
	return brokertest.Run(pgtest.Closing(m))
}

// binaries are what has been built of the program so far.
var binaries struct {
	dir         string
	plain, race binary
}

type binary struct {
	once sync.Once
	path string
	err  error
}

// program returns the path of the binary, with the race detector when the tests have it.
func program(t testing.TB) string {
	t.Helper()
	if raceEnabled {
		return binaries.race.build(t, "sagaz-relay-race", "-race")
	}
	return fastProgram(t)
}

// fastProgram returns the path of the binary without the race detector, for what is measured.
func fastProgram(t testing.TB) string {
	t.Helper()
	return binaries.plain.build(t, "sagaz-relay")
}

func (b *binary) build(t testing.TB, name string, flags ...string) string {
	t.Helper()
	b.once.Do(func() {
		b.path = filepath.Join(binaries.dir, name)
		args := append(append([]string{"build"}, flags...), "-o", b.path, "github.com/sagaz-relay/relay/cmd/sagaz-relay")
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			b.err = fmt.Errorf("go %v: %w\n%s", args, err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
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
