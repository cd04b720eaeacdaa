//go:build !race

package chaos

// raceEnabled reports that these tests run with the race detector; the binary is built with it,
// too.
const raceEnabled = false
