package main

import (
	"errors"
	"strings"
	"testing"
)

// What bench cannot measure is refused before anything is made.
func TestBenchRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"--rate -1":                "--rate and --big of at least 0",
		"--big -5":                 "--rate and --big of at least 0",
		"--rate-for 0s":            "--rate-for of at least 1s",
		"--rate-for -3s":           "--rate-for of at least 1s",
		"--shards ,":               "--shards=,: want numbers of slots",
		"--shards 1 --rows 10":     "--rows=10: want at least one transaction",
		"--grow keys --csv --json": "want one of --csv and --json",
		"--rows 0":                 "--rows and --repeat of at least 1",
	} {
		out, err := execute(t, nil, append([]string{"bench"}, strings.Fields(args)...)...)
		usage := usageError{}
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("bench %s: %v, %q; want %q", args, err, out, want)
		}
	}
}
