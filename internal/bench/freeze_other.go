//go:build !unix

package bench

import "errors"

func freeze([]*relayProcess) error { return errors.New("bench --shards needs a Unix") }

func thaw([]*relayProcess) error { return nil }
