package image

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// What `make image` gives the build here.
const (
	testVersion  = "1.2.3-test"
	testRevision = "0123456789abcdef0123456789abcdef01234567"
)

// built is a root directory with exactly what the final stage copies, and what the image says of itself.
type built struct {
	root string
	shipped
}

// images by architecture: each is built once for all tests.
var images = struct {
	dir string
	of  map[string]*built
}{of: map[string]*built{}}

// build makes the image for an architecture.
func build(t *testing.T, arch string) *built {
	t.Helper()
	if b := images.of[arch]; b != nil {
		return b
	}
	d := parse(t)
	args := variables{"TARGETOS": "linux", "TARGETARCH": arch, "VERSION": testVersion, "REVISION": testRevision}
	stage := d.buildStage(t, args, filepath.Join(images.dir, "build-"+arch))
	b := &built{root: filepath.Join(images.dir, "root-"+arch), shipped: d.shipped(t, args)}
	for _, file := range b.copies {
		if file.From != d.build.Name || len(file.SourcePaths) != 1 {
			t.Fatalf("COPY %v: want one file from stage %s", file.SourcePaths, d.build.Name)
		}
		from, ok := stage(file.SourcePaths[0])
		if !ok {
			from = file.SourcePaths[0] // something that the base image has, as this machine does
		}
		if err := copyFile(from, filepath.Join(b.root, file.DestPath)); err != nil {
			t.Fatal(err)
		}
	}
	images.of[arch] = b
	return b
}

// buildStage does what the build stage says, in a sandbox whose directories are the stage's. The result finds a file of the stage by its path;
// those of the base image it does not know.
func (d *dockerfile) buildStage(t *testing.T, args variables, dir string) func(path string) (string, bool) {
	t.Helper()
	goEnv := goEnvironment(t)
	env := variables{"PATH": goEnv["GOROOT"] + "/bin:/usr/bin:/bin", "HOME": "/root", "GOPATH": "/go", "GOTOOLCHAIN": "local"}
	for _, name := range []string{"GOPROXY", "GONOSUMDB", "GONOSUMCHECK", "GOSUMDB", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"} {
		if value := os.Getenv(name); value != "" {
			env[name] = value
		} else if value := goEnv[name]; value != "" {
			env[name] = value
		}
	}
	// Directories of the stage, and where they are here.
	mounts := map[string]string{"/src": filepath.Join(dir, "src"), "/out": filepath.Join(dir, "out")}
	for _, at := range mounts {
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	caches := map[string]string{"/go/pkg/mod": goEnv["GOMODCACHE"], "/root/.cache/go-build": goEnv["GOCACHE"]}
	workdir, ran := "/", 0
	for _, cmd := range d.build.Commands {
		switch c := cmd.(type) {
		case *instructions.ArgCommand:
			for _, arg := range c.Args {
				value, ok := args[arg.Key]
				if !ok {
					t.Fatalf("ARG %s: make image does not give it", arg.Key)
				}
				env[arg.Key] = value
			}
		case *instructions.WorkdirCommand:
			workdir = c.Path
		case *instructions.CopyCommand:
			if workdir != "/src" {
				t.Fatalf("COPY to %s: this test knows /src", workdir)
			}
			if slices.Equal(c.SourcePaths, []string{"."}) {
				copyContext(t, mounts["/src"])
				continue
			}
			for _, name := range c.SourcePaths {
				if err := copyFile(filepath.Join(product.Root(), name), filepath.Join(mounts["/src"], name)); err != nil {
					t.Fatal(err)
				}
			}
		case *instructions.RunCommand:
			sandbox := []string{"--unshare-user", "--uid", "0", "--gid", "0", "--unshare-pid", "--die-with-parent", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"}
			for _, dir := range []string{"/usr", "/bin", "/lib", "/lib64", "/sbin", "/etc"} {
				sandbox = append(sandbox, "--ro-bind-try", dir, dir)
			}
			sandbox = append(sandbox, "--ro-bind", goEnv["GOROOT"], goEnv["GOROOT"])
			for at, here := range mounts {
				sandbox = append(sandbox, "--bind", here, at)
			}
			if err := c.Expand(func(word string) (string, error) { return d.expand(t, word, env), nil }); err != nil {
				t.Fatal(err)
			}
			for _, m := range instructions.GetMounts(c) {
				here, ok := caches[m.Target]
				if !ok {
					t.Fatalf("RUN --mount target=%s: Go keeps nothing there", m.Target)
				}
				sandbox = append(sandbox, "--bind", here, m.Target)
			}
			sandbox = append(sandbox, "--chdir", workdir, "--clearenv")
			for name, value := range env {
				sandbox = append(sandbox, "--setenv", name, value)
			}
			sandbox = append(append(sandbox, "/bin/sh", "-c"), strings.Join(c.CmdLine, " "))
			if out, err := exec.Command("bwrap", sandbox...).CombinedOutput(); err != nil {
				t.Fatalf("RUN %s: %v\n%s", strings.Join(c.CmdLine, " "), err, out)
			}
			ran++
		default:
			t.Fatalf("the build stage has %s, which this test does not know", cmd.Name())
		}
	}
	if ran == 0 {
		t.Fatal("the build stage runs nothing")
	}
	return func(path string) (string, bool) {
		for at, here := range mounts {
			if rest, ok := strings.CutPrefix(path, at+"/"); ok {
				return filepath.Join(here, rest), true
			}
		}
		return "", false
	}
}

// goEnvironment is where Go is and what it uses on this machine.
func goEnvironment(t *testing.T) map[string]string {
	t.Helper()
	names := []string{"GOROOT", "GOMODCACHE", "GOCACHE", "GOPROXY", "GOSUMDB"}
	cmd := exec.Command("go", append([]string{"env"}, names...)...)
	cmd.Dir = product.Root()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	values := strings.Split(string(out), "\n")
	env := map[string]string{}
	for i, name := range names {
		env[name] = values[i]
	}
	for _, name := range []string{"GOMODCACHE", "GOCACHE"} { // there before the first build, as in BuildKit
		if err := os.MkdirAll(env[name], 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	return env
}
