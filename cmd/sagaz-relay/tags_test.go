package main

import (
	"reflect"
	"strings"
	"testing"
)

// Every setting of every struct has a tag of the one form, and whatever is called as a secret is
// one.
func TestTagsOfAllSettings(t *testing.T) {
	seen := 0
	for _, c := range defaultSettings().configs() {
		s := reflect.TypeOf(c).Elem()
		for i := range s.NumField() {
			f := s.Field(i)
			parsed, err := parseTag(f.Name, f.Tag)
			if err != nil {
				t.Errorf("%s: %v", s, err)
			}
			if parsed == nil && f.IsExported() && secretNames.MatchString(strings.ToUpper(f.Name)) {
				t.Errorf("%s.%s is called as a secret is, and has no tag", s, f.Name)
			}
			if parsed != nil {
				seen++
			}
		}
	}
	if seen < 90 {
		t.Errorf("%d settings: the test looks in the wrong place", seen)
	}
}

// A tag that reflect would read in part, or another way than it was meant, is refused: the setting
// would be shown.
func TestTagsRefused(t *testing.T) {
	for _, tag := range []reflect.StructTag{
		`env:"RELAY_X" secret:true`, `env:"RELAY_X" secret:"yes"`, `env:"RELAY_X" secret:""`, `env:"RELAY_X" secrets:"true"`, `env:"RELAY_X",secret:"true"`, `env:"RELAY_X"  secret:"true"`,
		`env:"RELAY_X" Secret:"true"`, `env: "RELAY_X" secret:"true"`, `env:"RELAY_X,secret"`, `env:"RELAY_X" secret`, `secret:"true"`, `env:"" secret:"true"`, `env:"relay_x"`, `env:"RELAY_X" env:"RELAY_Y"`,
		`env:"RELAY_X_PASSWORD"`, `env:"RELAY_X_URL"`, `env:"RELAY_X,X_TOKEN"`, `json:"x" env:"RELAY_X"`, `env:"RELAY_X" fallback:"x y"`,
	} {
		if _, err := parseTag("X", tag); err == nil {
			t.Errorf("`%s`: accepted", tag)
		}
	}
	for tag, want := range map[reflect.StructTag]secrecy{
		`env:"RELAY_X"`: notSecret, `env:"RELAY_X,X_Y" fallback:"Z"`: notSecret, `env:"X_PASSWORD" secret:"true"`: secretTrue, `env:"RELAY_KEY_FILE" secret:"path"`: secretPath,
	} {
		if f, err := parseTag("X", tag); err != nil || f.secret != want {
			t.Errorf("`%s`: got %+v, %v", tag, f, err)
		}
	}
	if f, err := parseTag("X", ""); f != nil || err != nil {
		t.Errorf("no tag: got %+v, %v, want no setting", f, err)
	}
}
