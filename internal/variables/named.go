package variables

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sagaz-relay/relay/internal/address"
)

// Named sinks are listed in RELAY_SINKS, or in the YAML file under sinks. The settings of the sink
// orders-kafka are the variables RELAY_SINK_ORDERS_KAFKA_…, where … is what is left of a variable
// of its kind without the kind: KAFKA_CLIENT_ID and RELAY_KAFKA_BATCH_BYTES are
// RELAY_SINK_ORDERS_KAFKA_CLIENT_ID and RELAY_SINK_ORDERS_KAFKA_BATCH_BYTES. In the YAML file they
// are keys of the sink's mapping, in upper or lower case.

// NamedSinks lists the sinks that have names of their own.
const NamedSinks = "RELAY_SINKS"

// sinkName is what a sink may be called.
var sinkName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

// CheckSinkName reports what is wrong with the name of a sink.
func CheckSinkName(name string) error {
	if sinkName.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%s=%s: want names of 1 to 40 lower-case letters, digits and hyphens (none at either end), such as orders-kafka", NamedSinks, address.Argument(name))
}

// SinkPrefix is what the settings of a named sink begin with. Names have no underscores, so no two
// names have the same.
func SinkPrefix(name string) string {
	return "RELAY_SINK_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "_"
}

// OfSink returns what a variable of a kind of sink is called for the sink of that name. It is empty
// for a variable that is not the kind's alone, such as WORKER_ID.
func OfSink(name, kind, variable string) string {
	kind = strings.ToUpper(kind) + "_"
	rest, ok := strings.CutPrefix(strings.TrimPrefix(variable, "RELAY_"), kind)
	if !ok || rest == "" {
		return ""
	}
	return SinkPrefix(name) + rest
}

// Renamed are fields under the names that rename gives to theirs. Where it gives none a field stays
// as it is. One that is renamed has no fallback: that is somebody else's setting.
func Renamed(fields []Field, rename func(string) string) []Field {
	renamed := make([]Field, len(fields))
	for i, f := range fields {
		if rename(f.Names[0]) != "" {
			names := make([]string, len(f.Names))
			for j, name := range f.Names {
				names[j] = rename(name)
			}
			f.Names, f.Fallback = names, ""
		}
		renamed[i] = f
	}
	return renamed
}

// Claim keeps variables that begin so from being reported as unknown: what they belong to is
// reported already.
func (v *Values) Claim(prefix string) { v.claimed = append(v.claimed, prefix) }

// isClaimed reports whether a variable belongs to what is reported already.
func (v *Values) isClaimed(name string) bool {
	for _, prefix := range v.claimed {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// readSinks makes variables of the YAML file's list of sinks.
func (v *Values) readSinks(configFile string, value any) {
	list, ok := value.([]any)
	if !ok {
		v.fail("--config %s: sinks: want a list of mappings, each with name and kind", configFile)
		return
	}
	if _, both := v.file[NamedSinks]; both {
		v.fail("--config %s: sinks and %s are both set: want one of them", configFile, NamedSinks)
		return
	}
	var names []string
	for i, item := range list {
		mapping, ok := item.(map[string]any)
		name, named := mapping["name"].(string)
		if !ok || !named {
			v.fail("--config %s: sinks: number %d: want a mapping with name, a text, and kind", configFile, i+1)
			continue
		}
		if err := CheckSinkName(name); err != nil {
			v.fail("--config %s: sinks: number %d: %w", configFile, i+1, err)
			continue
		}
		if slices.Contains(names, name) {
			v.fail("--config %s: sinks: %s occurs twice", configFile, name)
			continue
		}
		names = append(names, name)
		for key, value := range mapping {
			if key == "name" {
				continue
			}
			variable := SinkPrefix(name) + strings.ToUpper(key)
			if !settingName.MatchString(strings.ToUpper(key)) {
				v.fail("--config %s: sinks: %s: %s", configFile, name, ShownName(key))
				continue
			}
			text, ok := textOf(value)
			switch _, twice := v.file[variable]; {
			case !ok:
				v.fail("--config %s: sinks: %s: %s: want a single value or a list", configFile, name, key)
			case twice:
				v.fail("--config %s: %s is set twice", configFile, variable)
			default:
				v.file[variable] = text
			}
		}
	}
	v.file[NamedSinks] = strings.Join(names, ",")
}

// Routes is the variable of the rules that the YAML file has under routes.
const Routes = "RELAY_ROUTES"

// readRoutes makes a variable of the YAML file's list of rules, which stays YAML.
func (v *Values) readRoutes(configFile string, value any) {
	if _, both := v.file[Routes]; both {
		v.fail("--config %s: routes and %s are both set: want one of them", configFile, Routes)
		return
	}
	text, err := yaml.Marshal(value)
	if err != nil { // it was read from YAML, so this does not occur
		v.fail("--config %s: routes: want a list of rules", configFile)
		return
	}
	v.file[Routes] = string(text)
}
