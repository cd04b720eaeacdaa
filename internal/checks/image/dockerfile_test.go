package image

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// dockerfile is the Dockerfile, parsed: a stage that builds and the one that is shipped.
type dockerfile struct {
	build, final instructions.Stage
	args         variables // before the first FROM
	lex          *shell.Lex
}

// variables are what $NAME stands for.
type variables map[string]string

// Get and Keys implement shell.EnvGetter.
func (v variables) Get(name string) (string, bool) { value, ok := v[name]; return value, ok }

func (v variables) Keys() []string {
	var names []string
	for name := range v {
		names = append(names, name)
	}
	return names
}

func parse(t *testing.T) *dockerfile {
	t.Helper()
	result, err := parser.Parse(bytes.NewReader(product.Read(t, "Dockerfile")))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range result.Warnings {
		t.Errorf("Dockerfile: %s", w.Short)
	}
	stages, args, err := instructions.Parse(result.AST, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) != 2 {
		t.Fatalf("the Dockerfile has %d stages, want one that builds and one that is shipped", len(stages))
	}
	d := &dockerfile{build: stages[0], final: stages[1], args: variables{}, lex: shell.NewLex(result.EscapeToken)}
	for _, cmd := range args {
		for _, arg := range cmd.Args {
			d.args[arg.Key] = arg.ValueString()
		}
	}
	return d
}

// expand replaces variables as `docker build` does.
func (d *dockerfile) expand(t *testing.T, word string, vars variables) string {
	t.Helper()
	got, unmatched, err := d.lex.ProcessWord(word, vars)
	if err != nil {
		t.Fatalf("%s: %v", word, err)
	}
	for name := range unmatched {
		t.Errorf("%s: %s is not an ARG or ENV of the stage", word, name)
	}
	return got
}

// shipped are the properties of the image.
type shipped struct {
	user, stopSignal string
	entrypoint, cmd  []string
	env, labels      variables
	ports            []string
	copies           []instructions.CopyCommand
}

func (d *dockerfile) shipped(t *testing.T, args variables) shipped {
	t.Helper()
	s := shipped{env: variables{}, labels: variables{}}
	known := variables{}
	for _, cmd := range d.final.Commands {
		switch c := cmd.(type) {
		case *instructions.ArgCommand:
			for _, arg := range c.Args {
				known[arg.Key] = args[arg.Key]
			}
		case *instructions.LabelCommand:
			for _, l := range c.Labels {
				s.labels[strings.Trim(l.Key, `"`)] = d.expand(t, l.Value, known)
			}
		case *instructions.EnvCommand:
			for _, e := range c.Env {
				s.env[e.Key] = d.expand(t, e.Value, known)
			}
		case *instructions.CopyCommand:
			s.copies = append(s.copies, *c)
		case *instructions.UserCommand:
			s.user = c.User
		case *instructions.ExposeCommand:
			s.ports = append(s.ports, c.Ports...)
		case *instructions.StopSignalCommand:
			s.stopSignal = c.Signal
		case *instructions.EntrypointCommand:
			if c.PrependShell {
				t.Error("ENTRYPOINT is run by a shell, and there is none: want the JSON form")
			}
			s.entrypoint = c.CmdLine
		case *instructions.CmdCommand:
			if c.PrependShell {
				t.Error("CMD is run by a shell, and there is none: want the JSON form")
			}
			s.cmd = c.CmdLine
		default:
			t.Errorf("the final stage has %s, which this test does not know", cmd.Name())
		}
	}
	return s
}

// copyContext copies the build context into a directory: the tree without what .dockerignore leaves out.
func copyContext(t *testing.T, to string) {
	t.Helper()
	patterns, err := ignorefile.ReadAll(bytes.NewReader(product.Read(t, ".dockerignore")))
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(product.Root(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(product.Root(), path)
		if err != nil || name == "." {
			return err
		}
		skip, err := ignored.MatchesOrParentMatches(filepath.ToSlash(name))
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir() && (name == ".git" || name == "bin" || name == ".cache"):
			if !skip {
				t.Errorf("%s is in the build context", name)
			}
			return filepath.SkipDir // for speed
		case skip || entry.IsDir():
			return nil
		case strings.HasSuffix(name, "_test.go"):
			t.Errorf("%s is in the build context", name)
		}
		return copyFile(path, filepath.Join(to, name))
	})
	if err != nil {
		t.Fatal(err)
	}
	// What somebody may leave in the tree, and nobody wants in an image's layers.
	for _, name := range []string{".env", "secrets.yaml", "k8s/secrets.yaml", "cmd.env", ".git/config", "docker-compose.override.yml", "bin/sagaz-relay"} {
		if in, err := ignored.MatchesOrParentMatches(name); err != nil || !in {
			t.Errorf("%s would be in the build context (%v)", name, err)
		}
	}
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
