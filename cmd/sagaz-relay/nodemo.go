//go:build nodemo

package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// A build with the tag nodemo, as the image is, leaves out demo and bench: what starts a
// PostgreSQL, and the program that downloads one.

const startWithDemo = ""

func newDemo() *cobra.Command { return leftOut("demo") }

func newBench(func() (*settings, error)) *cobra.Command { return leftOut("bench") }

// leftOut reports how to get the command, whatever flags it is given.
func leftOut(name string) *cobra.Command {
	return &cobra.Command{
		Use:                name,
		Short:              "Not in this build",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return usageError{fmt.Errorf(
				"this build has no %s: run \"make %s\" in the source, https://github.com/sagaz-relay/relay", name, name)}
		},
	}
}
