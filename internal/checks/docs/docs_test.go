package docs

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/variables"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// Every command in every document.
func TestCommands(t *testing.T) {
	l := newLookUp(t)
	n := 0
	for _, b := range blocks(t) {
		for _, c := range b.commands(t) {
			n++
			wrong := l.check(c)
			if wrong == "" && c.file == "monitoring/RUNBOOKS.md" && !slices.Contains(atHand, c.words[0]) {
				wrong = "whoever is paged may not have this: want kubectl and a program that is in the pod"
			}
			if wrong != "" {
				t.Errorf("%s:%d: %s: %s", c.file, c.line, strings.Join(c.words, " "), wrong)
			}
		}
	}
	if n < 50 {
		t.Errorf("%d commands found: the test looks in the wrong place", n)
	}
}

// atHand is what somebody has who can reach the cluster.
var atHand = []string{"kubectl", "grep", "curl", "base64", "export", "sagaz-relay"}

// inPod are the programs of the pods that documents run them in; the relay's image has nothing but
// the relay.
var inPod = map[string][]string{"outbox-worker": {"sagaz-relay"}, "postgresql-0": {"psql", "pg_dump", "pg_restore", "sh", "bash", "pg_ctl", "df", "du", "env", "printenv", "ls", "rm", "cat"}}

// SQL blocks work on a database as migrate makes it, each document's one after the other.
func TestSQL(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	for _, there := range []string{
		`CREATE PUBLICATION sagaz_outbox FOR TABLE saga_outbox`,
		`CREATE TABLE outboxevent (id uuid, aggregatetype text, aggregateid text, type text, payload jsonb)`, // Debezium's
	} {
		if _, err := db.Pool.Exec(t.Context(), there); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	var tx pgx.Tx // of one document
	document := ""
	undo := func() {
		if tx == nil {
			return
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, b := range blocks(t) {
		if b.lang != "sql" {
			continue
		}
		n++
		if b.file != document {
			undo()
			document = b.file
			var err error
			if tx, err = db.Conn(t).Begin(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		// It is all undone afterwards, so it may not end the transaction itself. What no
		// transaction takes is only parsed.
		text := regexp.MustCompile(`(?m)^(BEGIN|COMMIT);$`).ReplaceAllString(b.text, "")
		text = regexp.MustCompile(`(?m)^(ALTER SYSTEM|CREATE DATABASE) [^;]*;$`).ReplaceAllStringFunc(text, func(statement string) string {
			if _, err := db.Conn(t).Prepare(t.Context(), "", statement); err != nil {
				t.Errorf("%s:%d: %s: %v", b.file, b.line, statement, err)
			}
			return ""
		})
		if _, err := tx.Conn().PgConn().Exec(t.Context(), "SAVEPOINT block; "+text).ReadAll(); err != nil {
			t.Errorf("%s:%d: %v", b.file, b.line, err)
			if _, err := tx.Exec(t.Context(), "ROLLBACK TO block"); err != nil {
				t.Fatal(err)
			}
		}
	}
	undo()
	if n < 3 {
		t.Errorf("%d blocks of SQL found: the test looks in the wrong place", n)
	}
}

// Links within the tree lead somewhere, to a heading where they name one.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	for _, name := range documents(t) {
		for i, line := range strings.Split(string(product.Read(t, name)), "\n") {
			for _, m := range link.FindAllStringSubmatch(line, -1) {
				target := name
				if m[1] != "" {
					target = path.Join(path.Dir(name), m[1])
				}
				if _, err := os.Stat(filepath.Join(product.Root(), target)); err != nil {
					t.Errorf("%s:%d: the link to %s leads nowhere", name, i+1, m[1])
				} else if m[2] != "" && !slices.Contains(anchors(t, target), m[2]) {
					t.Errorf("%s:%d: %s has no heading #%s", name, i+1, target, m[2])
				}
			}
		}
	}
}

// Files that DESIGN.md and relay/doc.go send readers to are there, and so are the functions that
// they name in them.
func TestPlacesInTheCode(t *testing.T) {
	place := regexp.MustCompile(`\b([\w/-]+\.go)(?::` + "`?" + ` (\w+))?`)
	n := 0
	for _, document := range []string{"relay/DESIGN.md", "relay/doc.go"} {
		for i, line := range strings.Split(string(product.Read(t, document)), "\n") {
			for _, m := range place.FindAllStringSubmatch(line, -1) {
				n++
				text, err := os.ReadFile(filepath.Join(product.Root(), m[1]))
				if err != nil {
					text, err = os.ReadFile(filepath.Join(product.Root(), "relay", m[1]))
				}
				if err != nil {
					t.Errorf("%s:%d: there is no %s", document, i+1, m[1])
				} else if m[2] != "" && !regexp.MustCompile(`\b`+m[2]+`\b`).Match(text) {
					t.Errorf("%s:%d: %s has no %s", document, i+1, m[1], m[2])
				}
			}
		}
	}
	if n < 60 {
		t.Errorf("%d places found: the test looks in the wrong place", n)
	}
}

// anchors are what links to a document's headings end with, as GitHub makes them.
func anchors(t *testing.T, name string) (all []string) {
	t.Helper()
	for _, m := range regexp.MustCompile("(?m)^#+ (.+)$").FindAllStringSubmatch(string(product.Read(t, name)), -1) {
		anchor := strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")
		all = append(all, regexp.MustCompile(`[^\pL\pN_-]`).ReplaceAllString(anchor, ""))
	}
	return all
}

// lookUp knows where commands come from.
type lookUp struct {
	t        *testing.T
	db       *pgtest.DB
	settings map[string]product.Setting
	makefile string
	objects  map[string]bool // by name: what the manifests make
	services []string        // of docker-compose.yml
	helped   map[string]string
}

func newLookUp(t *testing.T) *lookUp {
	t.Helper()
	l := &lookUp{t: t, db: pgtest.New(t, pgtest.Migrated()), settings: product.Settings(t), makefile: string(product.Read(t, "Makefile")), objects: map[string]bool{}, helped: map[string]string{}}
	named := regexp.MustCompile(`(?m)^  name: "?([\w.-]+)"?`)
	for _, dir := range []string{"k8s", "monitoring"} {
		_ = filepath.WalkDir(filepath.Join(product.Root(), dir), func(path string, _ os.DirEntry, err error) error {
			if text, readErr := os.ReadFile(path); err == nil && readErr == nil && strings.HasSuffix(path, ".yaml") {
				for _, m := range named.FindAllStringSubmatch(string(text), -1) {
					l.objects[m[1]] = true
				}
			}
			return nil
		})
	}
	_, text, _ := strings.Cut(string(product.Read(t, "docker-compose.yml")), "\nservices:\n")
	text, _, _ = strings.Cut(text, "\nvolumes:\n")
	for _, m := range regexp.MustCompile(`(?m)^  ([\w-]+):$`).FindAllStringSubmatch(text, -1) {
		l.services = append(l.services, m[1])
	}
	return l
}

var ourVariable = regexp.MustCompile(`^(RELAY|KAFKA|RABBITMQ|BROKER|DATABASE)_`)

// known reports whether a variable is a setting, also one of a named sink: RELAY_SINK_, a name, and
// what a kind's setting is called without the kind.
func (l *lookUp) known(name string) bool {
	if _, ok := l.settings[name]; ok {
		return true
	}
	rest, named := strings.CutPrefix(name, "RELAY_SINK_")
	if !named || strings.HasSuffix(rest, "_KIND") {
		return named
	}
	for setting := range l.settings {
		for _, kind := range []string{"kafka", "rabbitmq", "file"} {
			if of := variables.OfSink("x", kind, setting); of != "" && strings.HasSuffix(rest, strings.TrimPrefix(of, "RELAY_SINK_X")) {
				return true
			}
		}
	}
	return false
}

// check says what is wrong with a command; "" for nothing.
func (l *lookUp) check(c command) string {
	for _, name := range c.set {
		if setting := strings.TrimSuffix(name, "_FILE"); !l.known(setting) && ourVariable.MatchString(name) {
			return name + " is no setting"
		}
	}
	if len(c.words) == 0 {
		return ""
	}
	// What another command is to run: kubectl exec … -- sagaz-relay doctor, docker compose exec
	// relay sagaz-relay doctor.
	if i := slices.Index(c.words, "sagaz-relay"); i > 0 && slices.Contains(c.words[:i], "exec") {
		if wrong := l.relay(c.words[i+1:]); wrong != "" {
			return wrong
		}
	}
	switch args := c.words[1:]; c.words[0] {
	case "sagaz-relay", "bin/sagaz-relay":
		return l.relay(args)
	case "make":
		return l.make(args)
	case "kubectl":
		return l.kubectl(args)
	case "docker":
		return l.docker(args)
	case "go":
		return l.paths(args)
	case "bash":
		return l.path(args[0])
	case "psql", "pg_restore", "pg_dump":
		return l.sql(args)
	case "git", "cd", "export", "curl", "helm", "velero", "promtool", "amtool", "jq", "grep", "base64", "openssl", "vault", "sed", "python", "pip", "cp", "mkdir", "cat", "echo":
		return ""
	}
	return "a command that this test does not know: where does it come from?"
}

// relay asks the binary itself: with --help at the end it reads everything before, and does
// nothing.
func (l *lookUp) relay(args []string) string {
	help := func(words []string) string {
		key := strings.Join(words, "\x00")
		if _, ok := l.helped[key]; !ok {
			cmd := exec.Command(product.Binary(l.t), append(slices.Clone(words), "--help")...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				l.helped[key] = "error: " + string(out)
			} else {
				l.helped[key] = string(out)
			}
		}
		return l.helped[key]
	}
	path := ""
	for _, word := range args {
		if strings.HasPrefix(word, "-") || path != "" && !strings.Contains(help(strings.Fields(path)), "Available Commands:") {
			break
		}
		path = strings.TrimSpace(path + " " + word)
	}
	text := help(args)
	if wrong, ok := strings.CutPrefix(text, "error: "); ok {
		return strings.TrimSpace(wrong)
	}
	if !strings.Contains(text, "Usage:\n  sagaz-relay "+path) {
		return fmt.Sprintf("there is no command %q", path)
	}
	return ""
}

func (l *lookUp) make(args []string) string {
	for _, word := range args {
		if name, _, ok := strings.Cut(word, "="); ok {
			if !regexp.MustCompile(`(?m)^` + name + `\s*\??=`).MatchString(l.makefile) {
				return "the Makefile has no variable " + name
			}
		} else if !strings.HasPrefix(word, "-") && !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(word)+`:`).MatchString(l.makefile) {
			return "the Makefile has no target " + word
		}
	}
	return ""
}

var kubectlKinds = strings.Fields("deploy deployment statefulset job svc service hpa secret configmap pod scaledobject prometheusrule podmonitor servicemonitor pdb networkpolicy")

func (l *lookUp) kubectl(args []string) string {
	if i := slices.Index(args, "--"); i >= 0 { // what runs in the pod
		inside := command{words: args[i+1:]}
		args = args[:i]
		if exec := slices.Index(args, "exec"); exec >= 0 && len(inside.words) > 0 {
			for _, word := range args[exec:] {
				if there, ok := inPod[word[strings.Index(word, "/")+1:]]; ok && !slices.Contains(there, inside.words[0]) {
					return fmt.Sprintf("%s has no %s", word, inside.words[0])
				}
			}
		}
		if len(inside.words) > 0 && inside.words[0] == "psql" {
			if wrong := l.sql(inside.words[1:]); wrong != "" {
				return wrong
			}
		}
	}
	for i, word := range args {
		kind, name, ok := strings.Cut(word, "/")
		switch {
		case (word == "-f" || word == "-k") && i+1 < len(args) && !slices.Contains(args, "logs"):
			if wrong := l.path(args[i+1]); wrong != "" {
				return wrong
			}
		case ok && slices.Contains(kubectlKinds, kind) && !l.objects[name]:
			return "no manifest makes " + word
		}
	}
	return ""
}

// docker looks for the services that `docker compose` is to start, stop or show.
func (l *lookUp) docker(args []string) string {
	if len(args) < 2 || args[0] != "compose" {
		return ""
	}
	verb := slices.IndexFunc(args, func(word string) bool {
		return slices.Contains([]string{"up", "logs", "stop", "start", "restart", "exec"}, word)
	})
	if verb < 0 {
		return ""
	}
	for _, word := range args[verb+1:] {
		switch {
		case strings.HasPrefix(word, "-"):
		case !slices.Contains(l.services, word):
			return "docker-compose.yml has no service " + word
		case args[verb] == "exec":
			return "" // the rest runs in the container
		}
	}
	return ""
}

// paths looks for every ./path.
func (l *lookUp) paths(args []string) string {
	for _, word := range args {
		if strings.HasPrefix(word, "./") {
			if wrong := l.path(strings.TrimSuffix(word, "...")); wrong != "" {
				return wrong
			}
		}
	}
	return ""
}

func (l *lookUp) path(path string) string {
	if path == "-" || strings.HasPrefix(path, "https://") {
		return ""
	}
	if _, err := os.Stat(filepath.Join(product.Root(), path)); err != nil {
		return path + " is not in the tree"
	}
	return ""
}

// sql has the server parse what -c says, and look up tables and columns; nothing is run.
func (l *lookUp) sql(args []string) string {
	for i, word := range args {
		if word == "-c" && i+1 < len(args) {
			conn := l.db.Conn(l.t)
			if _, err := conn.Prepare(l.t.Context(), "", args[i+1]); err != nil {
				return err.Error()
			}
		}
	}
	return ""
}
