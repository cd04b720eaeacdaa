// Package sagaz_relay_test holds what is checked about the module as a whole.
package sagaz_relay_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sagaz-relay/relay"

// allowed is which of our packages a package may import, by path patterns (path.Match; the first
// that matches counts). What each room is for is in CONTRIBUTING.md: imports point
// inward, cmd is the one place that knows all rooms.
var allowed = []struct {
	pkg     string
	imports []string
}{
	// All but the parts of the testbed: demo and bench have those.
	{"cmd/sagaz-relay", []string{"*", "*/*"}},
	{"cmd/*", []string{"*", "*/*", "*/*/*"}},
	{"cmd/*/*", []string{"*", "*/*", "*/*/*"}}, // end-to-end tests
	// Developers' servers, as processes: they know no relay.
	{"internal/testbed", []string{"internal/testbed/*"}},
	{"internal/testbed/captured", []string{"relay", "cdc/pgoutput"}}, // input of benchmarks
	{"internal/testbed/pgtest", []string{"migrations", "internal/testbed/pgserver"}},
	{"internal/testbed/*", []string{"internal/testbed/*"}},
	{"internal/orders", []string{"relay", "relay/store", "relay/verify"}},
	{"internal/demo", []string{"relay", "relay/watch", "relay/store", "relay/verify", "sinks/file", "internal/orders", "internal/testbed/pgserver"}},
	{"internal/bench", []string{"relay", "relay/watch", "relay/store", "cdc", "migrations", "sinks/kafka", "sinks/rabbitmq", "internal/testbed/pgserver"}},
	{"internal/*", nil},
	{"relay", nil},
	// It looks at all of them, as cmd does.
	{"relay/doctor", []string{"relay", "relay/columns", "relay/sessions", "relay/store", "cdc", "cdc/pgoutput", "migrations"}},
	{"relay/encode", []string{"relay"}},
	{"relay/route", []string{"relay", "relay/encode"}},
	{"relay/engine", []string{"relay"}}, // it delivers; what watches it is handed to it
	{"relay/watch", []string{"relay"}},
	{"relay/admin", []string{"relay", "relay/watch"}},
	{"relay/store", []string{"relay", "relay/columns", "relay/sessions"}},
	{"relay/*", []string{"relay", "relay/sessions", "internal/term"}},
	{"cdc", []string{"relay", "relay/columns", "relay/sessions", "cdc/pgoutput"}},
	{"cdc/*", []string{"relay", "relay/columns"}},
	{"sinks/stdout", []string{"relay", "sinks/file"}}, // the same lines, to another writer
	{"sinks/halve", nil},                              // numbers only
	{"sinks/*", []string{"relay", "sinks/halve"}},
	{"migrations", nil},
}

// confined are modules that only some of our packages may use, tests excepted: the engine and the
// sinks are to know nothing of them.
var confined = []struct {
	prefix string
	rooms  []string
}{
	{"go.opentelemetry.io/", []string{"relay/traces", "internal/testbed/otlptest"}},
	{"google.golang.org/grpc", []string{"relay/traces", "internal/testbed/otlptest"}},
	// A server for tests: no program of ours may have it.
	{"github.com/nats-io/nats-server", []string{"internal/testbed/natstest"}},
	// Cmd makes the registry.
	{"github.com/prometheus/", []string{"relay/watch", "relay/admin", "cmd/sagaz-relay"}},
}

// plain are rooms that use nothing but the standard library, what is ours, and the modules that are
// named. They know neither HTTP nor SQL.
var plain = map[string][]string{
	"relay":        nil,
	"relay/encode": nil,
	"relay/route":  nil,
	"relay/engine": {"github.com/hashicorp/go-hclog", "golang.org/x/sync/errgroup"},
}

// A test may also use what was made for tests, and a migrated database.
var allowedInTests = []string{
	"relay", "relay/encode", "relay/engine", "relay/route", "relay/watch", "relay/ledgertest", "relay/repair", "relay/verify", "sinks/sinktest", "migrations",
	"internal/testbed/brokertest", "internal/testbed/captured", "internal/testbed/pgtest", "internal/testbed/pgserver", "internal/testbed/otlptest", "internal/testbed/natstest", "internal/testbed/redistest", "internal/testbed/awstest",
}

func TestImportsPointInward(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	packages := 0
	for list := json.NewDecoder(strings.NewReader(string(out))); ; packages++ {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := list.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := ours(p.ImportPath)
		if name == "" { // this test
			continue
		}
		i := slices.IndexFunc(allowed, func(a struct {
			pkg     string
			imports []string
		},
		) bool {
			return matches(a.pkg, name)
		})
		if i < 0 {
			t.Errorf("%s: a new room; say in imports_test.go what it may import, and in CONTRIBUTING.md what it is for", name)
			continue
		}
		for _, imported := range p.Imports {
			if !may(name, imported, allowed[i].imports) {
				t.Errorf("%s imports %s, and may import only %v of ours", name, ours(imported), allowed[i].imports)
			}
			if modules, ok := plain[name]; ok && ours(imported) == imported && !isPlain(imported, modules) {
				t.Errorf("%s imports %s, and may use only the standard library without HTTP and SQL, ours, and %v", name, imported, modules)
			}
			for _, c := range confined {
				if strings.HasPrefix(imported, c.prefix) && !slices.Contains(c.rooms, name) {
					t.Errorf("%s imports %s, which only %v may", name, imported, c.rooms)
				}
			}
		}
		for _, imported := range append(p.TestImports, p.XTestImports...) {
			if !may(name, imported, append(slices.Clone(allowed[i].imports), allowedInTests...)) {
				t.Errorf("a test of %s imports %s, and may import only %v and %v of ours",
					name, ours(imported), allowed[i].imports, allowedInTests)
			}
		}
	}
	if packages < 5 {
		t.Fatalf("go list found %d packages: the test looks in the wrong place", packages)
	}
}

// TestImageHasNoDownloader: what the Dockerfile builds can neither download nor start a server, and
// what make builds can.
func TestImageHasNoDownloader(t *testing.T) {
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	tags := regexp.MustCompile(`(?m) go build .*-tags (\S+) `).FindSubmatch(dockerfile)
	if tags == nil {
		t.Fatal("the Dockerfile has no go build with -tags")
	}
	for _, build := range []struct {
		tags string
		want bool
	}{{string(tags[1]), false}, {"", true}} {
		cmd := exec.Command("go", "list", "-deps", "-tags", build.tags, "./cmd/sagaz-relay")
		cmd.Env = append(os.Environ(), "GOOS=linux") // as the image
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"embedded-postgres", "/internal/testbed", "/internal/demo", "/internal/bench"} {
			if got := strings.Contains(string(out), name); got != build.want {
				t.Errorf("go list -deps -tags=%s names %s: %t, want %t", build.tags, name, got, build.want)
			}
		}
	}
}

// TestSinksCanBeLeftOut: who wants a sink not pays nothing for it, and nobody gets a server that
// only tests start.
func TestSinksCanBeLeftOut(t *testing.T) {
	for _, build := range []struct {
		tags    string
		modules map[string]bool // by a part of a package's name: whether the program has it
	}{
		{"", map[string]bool{"github.com/aws/aws-sdk-go-v2": true, "github.com/nats-io/nats.go": true, "github.com/nats-io/nats-server": false}},
		{"noaws", map[string]bool{"github.com/aws/": false, "relay/sinks/aws": false, "github.com/nats-io/nats.go": true}},
		{"nonats", map[string]bool{"github.com/nats-io/": false, "relay/sinks/nats": false, "redis/go-redis": true}},
		{"noredis", map[string]bool{"redis/go-redis": false, "relay/sinks/redis": false, "github.com/nats-io/nats.go": true}},
	} {
		out, err := exec.Command("go", "list", "-deps", "-tags", build.tags, "./cmd/sagaz-relay").Output()
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range build.modules {
			if got := strings.Contains(string(out), name); got != want {
				t.Errorf("go list -deps -tags=%s names %s: %t, want %t", build.tags, name, got, want)
			}
		}
	}
}

func isPlain(imported string, modules []string) bool {
	if strings.HasPrefix(imported, "net/http") || strings.HasPrefix(imported, "database/sql") {
		return false
	}
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".") || slices.Contains(modules, imported)
}

// What has to be read before a first change to delivery stays small: relay/doc.go has the list.
func TestReadingList(t *testing.T) {
	doc, err := os.ReadFile("relay/doc.go")
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile(`(?s)// # To read first\n(.*?)\n// # `).FindSubmatch(doc)
	if section == nil {
		t.Fatal("relay/doc.go has no list of what to read first")
	}
	var files []string
	for _, line := range regexp.MustCompile(`(?m)^//\t.*`).FindAllString(string(section[1]), -1) {
		files = append(files, regexp.MustCompile(`[\w/]+\.go`).FindAllString(line, -1)...)
	}
	lines := 0
	for _, file := range append(files, "doc.go") {
		text, err := os.ReadFile(path.Join("relay", file))
		if err != nil {
			t.Error(err)
		}
		lines += strings.Count(string(text), "\n")
	}
	if len(files) < 15 || lines > 3500 {
		t.Errorf("%d files with %d lines, want the path of an event in at most 3,500", len(files), lines)
	}
	t.Logf("%d files, %d lines", len(files), lines)
}

// everywhere are rooms that know nothing of ours, and that every other may use.
var everywhere = []string{"internal/address", "internal/term", "internal/tlsfiles", "internal/yamltext"}

func may(importer, imported string, patterns []string) bool {
	if imported != module && !strings.HasPrefix(imported, module+"/") {
		return true // not ours
	}
	name := ours(imported)
	// An external test of the package itself.
	return name == importer || slices.Contains(everywhere, name) ||
		!strings.HasPrefix(name, "cmd/") && slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
}

func ours(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}
