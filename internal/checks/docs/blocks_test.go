package docs

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"mvdan.cc/sh/v3/syntax"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// block is a piece of a document that somebody may copy.
type block struct {
	file string
	line int
	lang string
	text string
}

var (
	fence  = regexp.MustCompile("^(\\s*)```(\\w*)\\s*$")
	inline = regexp.MustCompile("`((?:bin/)?sagaz-relay [a-z][^`\n]*)`")
)

// documents are the Markdown files of the tree.
func documents(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir(product.Root(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(product.Root(), path)
		if err != nil {
			return err
		}
		if entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && name != "." || name == "bin" || entry.Name() == "testdata") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(name, ".md") {
			names = append(names, filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(names, "README.md") {
		t.Fatalf("no README.md among %v", names)
	}
	return names
}

// blocks are the fenced blocks of all documents, and the commands of ours in their prose (lang
// "inline").
func blocks(t *testing.T) (all []block) {
	t.Helper()
	for _, name := range documents(t) {
		var open *block
		indent := ""
		for i, line := range strings.Split(string(product.Read(t, name)), "\n") {
			m := fence.FindStringSubmatch(line)
			if m == nil && strings.Contains(line, "```") {
				t.Errorf("%s:%d: a fence in the middle of a line, which nothing shows as a block: %s", name, i+1, line)
			}
			switch {
			case m != nil && open == nil:
				open, indent = &block{file: name, line: i + 1, lang: m[2]}, m[1]
			case m != nil:
				all = append(all, *open)
				open = nil
			case open != nil:
				open.text += strings.TrimPrefix(line, indent) + "\n"
			default:
				for _, m := range inline.FindAllStringSubmatch(line, -1) {
					if !strings.ContainsAny(m[1], "…<[") { // a pattern, not a command
						all = append(all, block{name, i + 1, "inline", m[1]})
					}
				}
			}
		}
		if open != nil {
			t.Errorf("%s:%d: the block does not end", name, open.line)
		}
	}
	return all
}

// shell returns what of a block is typed into a shell.
func (b block) shell() string {
	switch b.lang {
	case "sh", "bash", "inline":
		return b.text
	case "", "console":
		var typed strings.Builder
		for line := range strings.Lines(b.text) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				typed.WriteString(command)
			}
		}
		return typed.String()
	}
	return ""
}

// command is one simple command: its words as far as they can be told without running anything, and
// the variables set for it.
type command struct {
	block
	line  int
	words []string
	set   []string
}

// commands parses the shell parts of a block.
func (b block) commands(t *testing.T) (all []command) {
	t.Helper()
	text := b.shell()
	if text == "" {
		return nil
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(text), "")
	if err != nil {
		t.Errorf("%s:%d: no shell takes this: %v", b.file, b.line, err)
		return nil
	}
	syntax.Walk(file, func(n syntax.Node) bool {
		var assigns []*syntax.Assign
		c := command{block: b, line: b.line}
		switch n := n.(type) {
		case *syntax.CallExpr:
			assigns = n.Assigns
			for _, w := range n.Args {
				c.words = append(c.words, plain(w))
			}
			c.line += int(n.Pos().Line())
		case *syntax.DeclClause: // export
			assigns = n.Args
			c.line += int(n.Pos().Line())
		default:
			return true
		}
		for _, a := range assigns {
			if a.Name != nil {
				c.set = append(c.set, a.Name.Value)
			}
		}
		all = append(all, c)
		return true
	})
	return all
}

// plain is a word without its quotes; what is not known before it runs is an X.
func plain(w *syntax.Word) string {
	var text strings.Builder
	unescape := strings.NewReplacer("\\\n", "", `\"`, `"`, `\$`, "$", `\\`, `\`)
	var add func(parts []syntax.WordPart)
	add = func(parts []syntax.WordPart) {
		for _, part := range parts {
			switch p := part.(type) {
			case *syntax.Lit:
				text.WriteString(unescape.Replace(p.Value))
			case *syntax.SglQuoted:
				text.WriteString(p.Value)
			case *syntax.DblQuoted:
				add(p.Parts)
			default:
				text.WriteString("X")
			}
		}
	}
	add(w.Parts)
	return text.String()
}
