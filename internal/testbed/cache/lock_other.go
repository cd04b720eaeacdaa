//go:build !unix

package cache

import "os"

// tryLock does not lock: two processes may fill at once here, and the first rename wins.
func tryLock(*os.File) error { return nil }
