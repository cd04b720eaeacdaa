package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/cdc"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// variable is one setting as --help and the README's table show it.
type variable struct {
	names    []string
	fallback string
	defaults string
	secret   bool
}

// allVariables lists every setting once, in the order of the structs.
func allVariables() []variable {
	program, engine, source, rows := defaultProgramConfig(), relay.DefaultConfig(), cdc.DefaultConfig(), store.DefaultConfig()
	configs := []any{&source, &program, &engine, &rows}
	for _, k := range sinkKinds {
		configs = append(configs, k.config())
	}
	var all []variable
	seen := make(map[string]bool)
	for _, c := range configs {
		v := reflect.ValueOf(c).Elem()
		for i := range v.NumField() {
			f := v.Type().Field(i)
			tag, ok := f.Tag.Lookup("env")
			if !ok {
				continue
			}
			names := strings.Split(tag, ",")
			if seen[names[0]] {
				continue
			}
			seen[names[0]] = true
			all = append(all, variable{names: names, fallback: f.Tag.Get("fallback"), secret: f.Tag.Get("secret") != "", defaults: showDefault(v.Field(i))})
		}
	}
	return all
}

func showDefault(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case []string:
		return strings.Join(x, ",")
	case time.Duration:
		return x.String()
	default:
		return fmt.Sprint(x)
	}
}

func describeVariables() []string {
	var lines []string
	for _, v := range allVariables() {
		line := "  " + strings.Join(v.names, " or ")
		if v.fallback != "" {
			line += " (else " + v.fallback + ")"
		}
		if v.defaults != "" {
			line += "  [" + v.defaults + "]"
		}
		lines = append(lines, line)
	}
	return append(lines, "", "The README says what each does.")
}
