package admin

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

// fieldsOf lists the paths of all that a value of type t is as JSON. One that may be left out has "
// if" behind it.
func fieldsOf(t reflect.Type, path string) (all []string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[time.Time](), t == reflect.TypeFor[relay.Level]():
		return []string{path}
	case t.Kind() == reflect.Slice:
		return fieldsOf(t.Elem(), path+"[]")
	case t.Kind() == reflect.Map:
		return fieldsOf(t.Elem(), path+".*")
	case t.Kind() != reflect.Struct:
		return []string{path}
	}
	if path != "" {
		path += "."
	}
	for f := range t.Fields() {
		name, options, tagged := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			all = append(all, fieldsOf(f.Type, strings.TrimSuffix(path, "."))...)
		default:
			below := fieldsOf(f.Type, path+name)
			if tagged && strings.HasPrefix(options, "omit") {
				below[0] += " if"
			}
			all = append(all, below...)
		}
	}
	return all
}

// The description of /status.json names every field, once, and no other.
func TestFieldsAreDescribed(t *testing.T) {
	text, err := os.ReadFile("../../docs/status-json.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "<!-- fields")
	table, _, _ = strings.Cut(table, "<!-- end of fields -->")
	var got []string
	for row := range strings.Lines(table) {
		if cells := strings.Split(row, "|"); len(cells) == 4 && strings.HasPrefix(cells[1], " `") {
			for _, m := range regexp.MustCompile("`([^`]+)`( \\*if\\*)?").FindAllStringSubmatch(cells[1], -1) {
				field := m[1]
				if m[2] != "" {
					field += " if"
				}
				got = append(got, field)
			}
		}
	}
	want := append(fieldsOf(reflect.TypeFor[Report](), ""), "database", "set", "set.change") // they may be null as a whole
	for _, f := range want {
		if n := strings.Count("\n"+strings.Join(got, "\n")+"\n", "\n"+f+"\n"); n != 1 {
			t.Errorf("%s is described %d times", f, n)
		}
	}
	for _, f := range got {
		if !slices.Contains(want, f) {
			t.Errorf("%s is described, and does not exist", f)
		}
	}
	if len(want) < 60 {
		t.Errorf("only %d fields were found", len(want))
	}
}
