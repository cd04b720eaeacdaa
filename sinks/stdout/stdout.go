// Package stdout is the sink that shows records instead of delivering them: the lines of
// sinks/file, on standard output. A record is acknowledged when it is written, so whoever reads the
// pipe sets the pace.
package stdout

import (
	"io"

	"github.com/sagaz-relay/relay/sinks/file"
)

// New makes a sink of that name that writes lines to w. It has nothing to configure.
func New(name string, w io.Writer) *file.Sink { return file.NewWriter(name, w) }
