package encode

import (
	"reflect"
	"strings"
	"testing"
)

// Everything that is wrong is reported at once, each by its variable's name; the defaults are
// right.
func TestConfigValidateTellsEverything(t *testing.T) {
	cfg := DefaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	cfg = Config{Topic: "{nope}", RoutingKey: "{", ContentType: "avro", Headers: []string{"x"}}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("got nil")
	}
	s := reflect.TypeOf(cfg)
	for i := range s.NumField() {
		name := s.Field(i).Tag.Get("env")
		if name == "" {
			t.Errorf("%s has no variable", s.Field(i).Name)
			continue
		}
		lines := 0
		for line := range strings.Lines(err.Error()) {
			if strings.HasPrefix(line, name+"=") || strings.HasPrefix(line, name+":") {
				lines++
			}
		}
		if lines != 1 {
			t.Errorf("%s is reported %d times, want once, in:\n%v", name, lines, err)
		}
	}
}
