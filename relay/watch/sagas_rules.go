package watch

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// sagaOutcome is what an event means for its saga.
type sagaOutcome string

// Outcomes that a rule may name.
const (
	sagaStarted sagaOutcome = "started"
	sagaStep    sagaOutcome = "step" // a step has succeeded
	// A step has failed; compensation, if any, follows.
	sagaStepFailed  sagaOutcome = "step_failed"
	sagaCompensated sagaOutcome = "compensated" // a step was compensated
	// A step could not be compensated: what it did is still in effect.
	sagaUncompensated sagaOutcome = "compensation_failed"
	sagaCompleted     sagaOutcome = "completed" // the saga has ended well
	// The saga has ended otherwise, compensated or not.
	sagaFailed sagaOutcome = "failed"
)

var sagaOutcomes = []sagaOutcome{sagaStarted, sagaStep, sagaStepFailed, sagaCompensated, sagaUncompensated, sagaCompleted, sagaFailed}

// DefaultSagaRules are the event types of the library's OutboxSagaListener, and one for what that
// does not report: a compensation that failed.
func DefaultSagaRules() []string {
	return []string{
		"{saga}.completed=completed", "{saga}.failed=failed",
		"{saga}.{step}.success=step", "{saga}.{step}.failed=step_failed", "{saga}.{step}.compensated=compensated",
		"{saga}.{step}.compensation_failed=compensation_failed",
	}
}

// sagaRule is what events of the types that it matches mean.
type sagaRule struct {
	pattern *regexp.Regexp
	outcome sagaOutcome
}

// parseSagaRule reads PATTERN=OUTCOME. In the pattern {saga} and {step} match a part without a dot,
// and * any text.
func parseSagaRule(text string) (sagaRule, error) {
	pattern, outcome, ok := strings.Cut(text, "=")
	pattern, outcome = strings.TrimSpace(pattern), strings.TrimSpace(outcome)
	switch {
	case !ok || pattern == "":
		return sagaRule{}, errors.New("want EVENT_TYPE=OUTCOME, such as {saga}.completed=completed")
	case !slices.Contains(sagaOutcomes, sagaOutcome(outcome)):
		return sagaRule{}, fmt.Errorf("no such outcome %q: want started, step, step_failed, compensated, compensation_failed, completed or failed", outcome)
	}
	var expr strings.Builder
	expr.WriteString("^")
	for rest := pattern; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "{saga}"):
			expr.WriteString(`(?P<saga>[^.]+)`)
			rest = rest[len("{saga}"):]
		case strings.HasPrefix(rest, "{step}"):
			expr.WriteString(`(?P<step>[^.]+)`)
			rest = rest[len("{step}"):]
		case rest[0] == '{' || rest[0] == '}':
			return sagaRule{}, errors.New("want {saga} or {step} in braces, nothing else")
		case rest[0] == '*':
			expr.WriteString(`(?s:.*)`)
			rest = rest[1:]
		default:
			end := strings.IndexAny(rest, "{}*")
			if end < 0 {
				end = len(rest)
			}
			expr.WriteString(regexp.QuoteMeta(rest[:end]))
			rest = rest[end:]
		}
	}
	expr.WriteString("$")
	for _, name := range []string{"{saga}", "{step}"} {
		if strings.Count(pattern, name) > 1 {
			return sagaRule{}, fmt.Errorf("%s occurs twice", name)
		}
	}
	compiled, err := regexp.Compile(expr.String())
	if err != nil {
		return sagaRule{}, err
	}
	return sagaRule{pattern: compiled, outcome: sagaOutcome(outcome)}, nil
}

// parseSagaRules reads all of them, and reports every one that cannot be read; "none" alone means
// no rules.
func parseSagaRules(texts []string) (rules []sagaRule, err error) {
	if len(texts) == 1 && texts[0] == "none" {
		return nil, nil
	}
	var errs []error
	for _, text := range texts {
		rule, err := parseSagaRule(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("RELAY_SAGA_RULES=%s: %w", text, err))
			continue
		}
		rules = append(rules, rule)
	}
	return rules, errors.Join(errs...)
}

// sagaMeaning is what an event's type alone means.
type sagaMeaning struct {
	outcome    sagaOutcome // empty: no rule names the type
	saga, step string      // as far as the type names them
}

// meaning asks the rules in order; the first that matches counts.
func meaning(rules []sagaRule, eventType string) (m sagaMeaning) {
	for i := range rules {
		found := rules[i].pattern.FindStringSubmatch(eventType)
		if found == nil {
			continue
		}
		m.outcome = rules[i].outcome
		if at := rules[i].pattern.SubexpIndex("saga"); at > 0 {
			m.saga = found[at]
		}
		if at := rules[i].pattern.SubexpIndex("step"); at > 0 {
			m.step = found[at]
		}
		return m
	}
	return m
}
