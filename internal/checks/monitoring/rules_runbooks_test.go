package monitoring

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// Every alert has a runbook that tells all that it should, and every runbook of that kind is of an alert. What is at the end is for no alert.
func TestRulesHaveRunbooks(t *testing.T) {
	_, alerts := rules(t)
	var names []string
	for _, r := range alerts {
		names = append(names, r.Alert)
	}
	for _, entry := range regexp.MustCompile(`(?m)^## `).Split(string(product.Read(t, "monitoring/RUNBOOKS.md")), -1)[1:] {
		name, text, _ := strings.Cut(entry, "\n")
		if !strings.HasPrefix(name, "Outbox") {
			continue
		}
		i := slices.Index(names, name)
		if i < 0 {
			t.Errorf("%s is the name of no alert, or is there twice", name)
			continue
		}
		names = slices.Delete(names, i, i+1)
		for _, part := range []string{"**Symptom.**", "**What it means.**", "**What to run.**\n\n```sh\n", "**How to fix it.**", "**How to know it is fixed.**"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s: no %q", name, part)
			}
		}
	}
	for _, name := range names {
		t.Errorf("%s has no runbook", name)
	}
}
