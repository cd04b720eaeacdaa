package route

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/yamltext"
	"github.com/sagaz-relay/relay/relay/encode"
)

// setting is what errors call the rules.
const setting = "RELAY_ROUTES"

// longestType is that of the columns event_type and aggregate_type.
const longestType = 255

// ruleName is what a rule may be called: it is a metric's label.
var ruleName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// shown is a text of the user's as it may be repeated: an address with its password may have got
// here by mistake.
func shown(text string) string { return address.Argument(text) }

// parse reads rules: a list in YAML, of which JSON is a part. Its error has everything that is wrong
// with them.
func parse(text string) ([]*Rule, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var value any
	if err := yamltext.Read(text, &value); err != nil {
		return nil, fmt.Errorf("%s: %w: want a list of rules in YAML or JSON, such as [{name: audit, sinks: [audit-rabbit], event_type: \"Order*\"}], with patterns in quotes", setting, err)
	}
	list, ok := value.([]any)
	if !ok && value != nil {
		return nil, fmt.Errorf("%s: want a list of rules, each a mapping that begins with - name: (or, as NAME_FILE, the name of a file with that list)", setting)
	}
	var rules []*Rule
	var errs []error
	numbers := make(map[string]int)
	for i, item := range list {
		mapping, ok := item.(map[string]any)
		if !ok {
			errs = append(errs, fmt.Errorf("%s: rule %d: want a mapping with name, and what else it has", setting, i+1))
			continue
		}
		p := parser{rule: &Rule{}, where: fmt.Sprintf("%s: rule %d", setting, i+1)}
		p.read(mapping)
		errs = append(errs, p.errs...)
		if before, twice := numbers[p.rule.Name]; twice {
			errs = append(errs, fmt.Errorf("%s: rules %d and %d are both called %s: want another name for one of them", setting, before, i+1, p.rule.Name))
		} else if p.rule.Name != "" {
			numbers[p.rule.Name] = i + 1
		}
		rules = append(rules, p.rule)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return rules, nil
}

// parser reads one rule.
type parser struct {
	rule  *Rule
	where string // which rule it is
	errs  []error
}

func (p *parser) fail(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(p.where+": "+format, args...)) //nolint:govet // where has no verbs
}

// fields are what a rule may have.
var fields = []string{"name", "sinks", "event_type", "aggregate_type", "headers", "topic", "routing_key", "key", "drop"}

func (p *parser) read(mapping map[string]any) {
	p.name(mapping["name"])
	for _, field := range slices.Sorted(maps.Keys(mapping)) {
		value := mapping[field]
		switch field {
		case "name":
		case "sinks":
			p.rule.Sinks = p.texts(field, value)
			if p.rule.Sinks != nil && len(p.rule.Sinks) == 0 {
				p.fail("sinks: an empty list: want names of sinks, or leave it out for all")
			}
		case "event_type":
			p.rule.eventType = p.globs(field, value, longestType)
		case "aggregate_type":
			p.rule.aggregateType = p.globs(field, value, longestType)
		case "headers":
			p.headers(value)
		case "topic":
			p.rule.topic = p.template(field, value)
		case "routing_key":
			p.rule.routingKey = p.template(field, value)
		case "key":
			p.rule.key = p.template(field, value)
		case "drop":
			drop, ok := value.(bool)
			if !ok {
				p.fail("drop: want true or false")
			}
			p.rule.Drop = drop
		default:
			p.fail("%s: no such field: want some of %s", shown(field), strings.Join(fields, ", "))
		}
	}
	if p.rule.Drop && (p.rule.topic != nil || p.rule.routingKey != nil || p.rule.key != nil) {
		p.fail("drop: true with topic, routing_key or key: what is dropped goes nowhere: leave one of them out")
	}
}

func (p *parser) name(value any) {
	name, _ := value.(string)
	if !ruleName.MatchString(name) {
		if value == nil {
			p.fail("name: not set: want 1 to 40 lower-case letters, digits and hyphens (none at either end)")
		} else {
			p.fail("name: %s: want 1 to 40 lower-case letters, digits and hyphens (none at either end), in quotes if they are a number", shown(fmt.Sprint(value)))
		}
		return
	}
	p.rule.Name = name
	p.where += " (" + name + ")"
	if name == Default {
		p.fail("name: %s is what counts where no rule matches: want another name", Default)
	}
}

// texts reads a text or a list of texts. It returns nil for anything else.
func (p *parser) texts(field string, value any) []string {
	switch x := value.(type) {
	case string:
		return []string{x}
	case []any:
		all := make([]string, 0, len(x))
		for _, item := range x {
			text, ok := item.(string)
			if !ok {
				p.fail("%s: want a list of texts: put numbers and true into quotes", field)
				return nil
			}
			all = append(all, text)
		}
		return all
	default:
		p.fail("%s: want a text or a list of texts: put numbers and true into quotes", field)
		return nil
	}
}

func (p *parser) globs(field string, value any, longest int) (all globs) {
	texts := p.texts(field, value)
	if texts != nil && len(texts) == 0 {
		p.fail("%s: an empty list matches nothing: want names or patterns, or leave it out for any", field)
	}
	for _, text := range texts {
		g, err := parseGlob(text, longest)
		if err != nil {
			p.fail("%s: %w", field, err)
			continue
		}
		all = append(all, g)
	}
	return all
}

func (p *parser) headers(value any) {
	mapping, ok := value.(map[string]any)
	if !ok || len(mapping) == 0 {
		p.fail("headers: want a mapping of a header's name to a text, a pattern or a list of them, such as {region: eu-*}")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(mapping)) {
		if name == "" {
			p.fail("headers: an empty name: want that of a header")
			continue
		}
		p.rule.headers = append(p.rule.headers, headerGlobs{name, p.globs("headers: "+shown(name), mapping[name], 0)})
	}
}

func (p *parser) template(field string, value any) *encode.Template {
	text, ok := value.(string)
	if !ok {
		p.fail("%s: want a text, such as orders or {event_type}: put a number into quotes", field)
		return nil
	}
	t, err := encode.ParseTemplate(text)
	if err != nil {
		p.fail("%s: %w", field, err)
		return nil
	}
	return &t
}
