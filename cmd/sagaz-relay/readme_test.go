package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestReadmeSettings compares the README's table with the Config structs: every variable is there, with its default, and no other is.
func TestReadmeSettings(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "<!-- settings:")
	table, _, closed := strings.Cut(table, "<!-- end of settings -->")
	if !ok || !closed {
		t.Fatal("README.md has no settings table between its two comments")
	}
	defaults := make(map[string]string)
	name := regexp.MustCompile("`([A-Z_]+)`")
	code := regexp.MustCompile("`([^`]*)`")
	for _, line := range strings.Split(table, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		names := name.FindAllStringSubmatch(cells[1], -1)
		values := code.FindAllStringSubmatch(cells[2], -1)
		for i, n := range names {
			defaults[n[1]] = ""
			switch {
			case len(values) == 1 && !strings.Contains(cells[2], ","), len(values) == 1 && i < 2:
				defaults[n[1]] = values[0][1]
			case i < len(values):
				defaults[n[1]] = values[i][1]
			}
		}
	}
	var known []string
	for _, v := range allVariables() {
		known = append(known, v.fallback)
		if _, listed := defaults[v.fallback]; v.fallback != "" && !listed {
			t.Errorf("README.md does not list %s", v.fallback)
		}
		for _, n := range v.names {
			known = append(known, n)
			got, listed := defaults[n]
			if !listed {
				t.Errorf("README.md does not list %s", n)
			} else if got != v.value {
				t.Errorf("README.md gives %s the default %q, the code %q", n, got, v.value)
			}
		}
	}
	for n := range defaults {
		if !slices.Contains(known, n) {
			t.Errorf("README.md lists %s, which nothing reads", n)
		}
	}
}
