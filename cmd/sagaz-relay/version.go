package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version and revision are set by the build of a release or image: -ldflags "-X main.version=1.2.3
// -X main.revision=4f2a…".
var version, revision string

// buildVersion is the release's version, or what Go knows of the source.
func buildVersion() (v, rev string) {
	v, rev = version, revision
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v, rev
	}
	if v == "" {
		v = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && rev == "" {
			rev = s.Value
		}
	}
	if v == "" {
		v = "(devel)"
	}
	return v, rev
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, revision := buildVersion()
			_, err := fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(fmt.Sprintf("sagaz-relay %s %s %s/%s %s", v, runtime.Version(), runtime.GOOS, runtime.GOARCH, revision)))
			return err
		},
	}
}
