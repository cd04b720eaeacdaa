package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// What `make image` gives the build here.
const (
	testVersion  = "1.2.3-test"
	testRevision = "0123456789abcdef0123456789abcdef01234567"
)

// image is a root directory with exactly what the final stage copies, and what it says of itself.
type image struct {
	root             string
	mounts           map[string]string // more of an engine's files, by where they appear, that may be written
	base             string            // of the final stage
	says             map[string]string // by instruction: USER, EXPOSE, …
	env, labels      map[string]string
	entrypoint, args []string
}

// directory has the image that all tests share; TestMain removes it.
var directory string

var build = sync.OnceValues(func() (*image, error) {
	text, err := os.ReadFile(filepath.Join(product.Root(), "Dockerfile"))
	if err != nil {
		return nil, err
	}
	joined := regexp.MustCompile(`(?m)^#.*\n|\\\n`).ReplaceAllString(string(text), "")
	b := &image{root: filepath.Join(directory, "root"), says: map[string]string{}, env: map[string]string{}, labels: map[string]string{}}
	out := filepath.Join(directory, "out")
	for line := range strings.Lines(joined) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		switch instruction {
		case "FROM":
			b.base = rest
		case "RUN":
			if !strings.Contains(rest, "go build ") {
				continue
			}
			shell := regexp.MustCompile(`--mount=\S+ `).ReplaceAllString(rest, "")
			cmd := exec.Command("/bin/sh", "-c", strings.Replace(shell, "-o /out/", "-o "+out+"/", 1))
			cmd.Dir = product.Root()
			cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH=", "VERSION="+testVersion, "REVISION="+testRevision)
			if said, err := cmd.CombinedOutput(); err != nil {
				return nil, errors.New(rest + ": " + string(said))
			}
		case "COPY":
			if from, ok := strings.CutPrefix(rest, "--from=build "); ok {
				from, to, _ := strings.Cut(from, " ")
				if err := copyFile(strings.Replace(from, "/out/", out+"/", 1), filepath.Join(b.root, to)); err != nil {
					return nil, err // certificates are this machine's
				}
			}
		case "ENV":
			name, value, _ := strings.Cut(rest, "=")
			b.env[name] = value
		case "LABEL":
			for _, m := range regexp.MustCompile(`([\w.]+)="([^"]*)"`).FindAllStringSubmatch(rest, -1) {
				b.labels[m[1]] = strings.NewReplacer("$VERSION", testVersion, "$REVISION", testRevision).Replace(m[2])
			}
		case "ENTRYPOINT":
			err = json.Unmarshal([]byte(rest), &b.entrypoint)
		case "CMD":
			err = json.Unmarshal([]byte(rest), &b.args)
		default:
			b.says[instruction] = rest
		}
		if err != nil { // not the JSON form, which a shell would run, and there is none
			return nil, err
		}
	}
	return b, nil
})

// built is the image for this machine.
func built(t *testing.T) *image {
	t.Helper()
	b, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, info.Mode().Perm())
}

// What the build reads is in the build context; tests, and what somebody may leave in the tree and
// nobody wants in an image's layers, are not.
func TestContext(t *testing.T) {
	patterns, err := ignorefile.ReadAll(bytes.NewReader(product.Read(t, ".dockerignore")))
	if err != nil {
		t.Fatal(err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, want bool) {
		ignored, err := matcher.MatchesOrParentMatches(filepath.ToSlash(name))
		if err != nil || ignored == want {
			t.Errorf("%s is in the build context: %v, want %v (%v)", name, !ignored, want, err)
		}
	}
	const read = `{{if .Module}}{{if .Module.Main}}{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{range .EmbedFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{end}}{{end}}`
	list := exec.Command("go", "list", "-deps", "-tags", "timetzdata,grpcnotrace,nodemo", "-f", read, "./cmd/sagaz-relay")
	list.Dir, list.Env = product.Root(), append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Fields(string(out))
	if len(files) < 100 {
		t.Errorf("the build reads %d files: the test looks in the wrong place", len(files))
	}
	for _, path := range files {
		name, err := filepath.Rel(product.Root(), path)
		if err != nil {
			t.Fatal(err)
		}
		check(name, true)
	}
	for _, name := range []string{".env", "secrets.yaml", "k8s/secrets.yaml", "cmd.env", ".git/config", "docker-compose.override.yml", "bin/sagaz-relay", "imports_test.go", "internal/checks/go.mod"} {
		check(name, false)
	}
}
