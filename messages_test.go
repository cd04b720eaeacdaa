package sagaz_relay_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Log messages that dashboards, alerts, runbooks and documents search for are messages of the
// product: whoever rewords one changes them, too.
func TestMessagesAreLogged(t *testing.T) {
	logged, said := literals(t)
	n := 0
	for _, w := range wanted(t) {
		n++
		among, where := logged, "no log message"
		if w.prose {
			among, where = said, "nothing that the product says"
		}
		text := strings.ToLower(w.text)
		if !slices.ContainsFunc(among, func(l string) bool { return strings.Contains(strings.ToLower(l), text) }) {
			t.Errorf("%s: %s has %q", w.where, where, w.text)
		}
	}
	if n < 45 || len(logged) < 100 {
		t.Errorf("%d texts are searched for in %d log messages: the test looks in the wrong place", n, len(logged))
	}
}

type searched struct {
	where, text string
	prose       bool // a document says that the log has it: it may be of an error there
}

var (
	logQL     = regexp.MustCompile("\\|[=~]\\s*(?:\\\\?\"([^\"\\\\$]+)\\\\?\"|`([^`$]+)`)")
	panelLink = regexp.MustCompile(`var-search=([\w+]+)`)
	grepped   = regexp.MustCompile(`\blogs\b.*\| grep (?:-\w+ )*["']([^"']+)["']`)
	tableRow  = regexp.MustCompile("^\\| `([a-z][^`]+)` \\| `(?:DEBUG|INFO|WARNING|ERROR)` \\|")
	sentences = regexp.MustCompile(`\.\s|\n\n|\n *(?:- |\||\d+\.)`)
	ofTheLog  = regexp.MustCompile(`\blog\b`)
	quoted    = regexp.MustCompile("\"([a-z][^\"{}]+)\"|\\blog `([^`]+)`")
)

// wanted are the texts that somebody is to look for in the log.
func wanted(t *testing.T) (all []searched) {
	t.Helper()
	files := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "k8s/*.md", "monitoring/*.md", "monitoring/*.json", "monitoring/prometheus-alerts.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		files = append(files, found...)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			for _, search := range []*regexp.Regexp{logQL, panelLink, grepped, tableRow} {
				for _, m := range search.FindAllStringSubmatch(line, -1) {
					text := strings.ReplaceAll(strings.Join(m[1:], ""), "+", " ")
					where := fmt.Sprintf("%s:%d", name, i+1)
					all = append(all, searched{where, text, strings.Contains(text, "_")}) // a key is no message
				}
			}
		}
		if !strings.HasSuffix(name, ".md") {
			continue
		}
		for _, sentence := range sentences.Split(string(text), -1) {
			if !ofTheLog.MatchString(sentence) {
				continue
			}
			for _, m := range quoted.FindAllStringSubmatch(strings.Join(strings.Fields(sentence), " "), -1) {
				constant, _, _ := strings.Cut(m[1]+m[2], "…")
				all = append(all, searched{name, strings.TrimSpace(constant), true})
			}
		}
	}
	return all
}

var levels = []string{"Trace", "Debug", "Info", "Warn", "Error"}

// literals are the texts in the product's source: of log messages, and all. A message in a variable
// or a constant counts by what its package gives the name; one that is passed on is a constant whose
// name ends in Message.
func literals(t *testing.T) (logged, said []string) {
	t.Helper()
	script, err := os.ReadFile("k8s/postgresql.yaml") // which logs, too
	if err != nil {
		t.Fatal(err)
	}
	said = append(said, string(script))
	named, given := map[string]bool{}, map[string][]string{} // by directory and name
	for _, root := range []string{"cdc", "cmd/sagaz-relay", "migrations", "relay", "sinks"} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			name := func(ident *ast.Ident) string { return filepath.Dir(path) + " " + ident.Name }
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.BasicLit:
					said = append(said, textsOf(n)...)
				case *ast.CallExpr:
					if f, ok := n.Fun.(*ast.SelectorExpr); ok && slices.Contains(levels, f.Sel.Name) && len(n.Args) > 0 {
						logged = append(logged, textsOf(n.Args[0])...)
						ast.Inspect(n.Args[0], func(n ast.Node) bool {
							if ident, ok := n.(*ast.Ident); ok {
								named[name(ident)] = true
							}
							return true
						})
					}
				case *ast.AssignStmt:
					for i, left := range n.Lhs {
						if ident, ok := left.(*ast.Ident); ok && i < len(n.Rhs) {
							given[name(ident)] = append(given[name(ident)], textsOf(n.Rhs[i])...)
						}
					}
				case *ast.ValueSpec:
					for i, ident := range n.Names {
						if i < len(n.Values) {
							if strings.HasSuffix(ident.Name, "Message") {
								named[name(ident)] = true
							}
							given[name(ident)] = append(given[name(ident)], textsOf(n.Values[i])...)
						}
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range named {
		logged = append(logged, given[name]...)
	}
	return logged, said
}

// textsOf are the string literals within an expression.
func textsOf(e ast.Expr) (all []string) {
	ast.Inspect(e, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if text, err := strconv.Unquote(l.Value); err == nil {
				all = append(all, text)
			}
		}
		return true
	})
	return all
}
