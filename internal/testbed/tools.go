package testbed

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

// tools are programs and files that tests of images and manifests use, and the Debian package that
// brings each. One with a / is a file.
var tools = map[string]string{
	"bwrap":                              "bubblewrap",
	"chromium":                           "chromium",
	"promtool":                           "prometheus",
	"psql":                               "postgresql-client",
	"/etc/ssl/certs/ca-certificates.crt": "ca-certificates",
	// a browser without a font shows boxes
	"/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf": "fonts-dejavu-core",
}

// ToolNames lists what ChooseTools knows.
func ToolNames() string { return strings.Join(slices.Sorted(maps.Keys(tools)), ", ") }

// ChooseTools makes a part of each program in the list.
func ChooseTools(names string) ([]Part, error) {
	var parts []Part
	for _, name := range strings.FieldsFunc(List(names), func(r rune) bool { return r == ',' }) {
		pkg, ok := tools[name]
		if !ok {
			return nil, fmt.Errorf("-tools=%s: no %q here, want some of %s", names, name, ToolNames())
		}
		parts = append(parts, Part{pkg, []source{toolHere(name), toolOfDebian(pkg)}})
	}
	return parts, nil
}

func toolHere(name string) source {
	return func(context.Context, io.Writer) (taken, error) {
		path := name
		var err error
		if strings.Contains(name, "/") {
			_, err = os.Stat(name)
		} else {
			path, err = exec.LookPath(name)
		}
		if err != nil {
			return taken{}, errUnavailable
		}
		return taken{from: path}, nil
	}
}

func toolOfDebian(pkg string) source {
	return func(ctx context.Context, log io.Writer) (taken, error) {
		if err := debian.Install(ctx, log, pkg); err != nil {
			return taken{}, err
		}
		return taken{from: "installed"}, nil
	}
}
