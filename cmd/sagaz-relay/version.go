package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the release build: -ldflags "-X main.version=1.2.3".
var version = ""

// buildVersion is the release's version, or what Go knows of the source.
func buildVersion() (v, revision string) {
	v = version
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v, ""
	}
	if v == "" {
		v = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	if v == "" {
		v = "(devel)"
	}
	return v, revision
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, revision := buildVersion()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "sagaz-relay %s %s %s/%s %s\n", v, runtime.Version(), runtime.GOOS, runtime.GOARCH, revision)
			return err
		},
	}
}
