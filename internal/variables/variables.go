package variables

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/yamltext"
)

// Values fills the rooms' Config structs; see tags.go for the tags of their fields.
//
// A value comes from the environment, from the file that NAME_FILE names, from the file NAME in
// RELAY_SECRETS_DIR, or from the YAML file, in this order. Every name is remembered, so that a
// RELAY_ variable that nothing reads can be reported.
//
// What goes wrong is reported by the name of the setting. A value is repeated only where it cannot
// be a secret: somebody may have put the password where the name of a file belongs, or a whole
// address into a line of YAML.
type Values struct {
	lookup  func(string) (string, bool)
	secrets map[string]string // those of RELAY_SECRETS_DIR
	file    map[string]string // the YAML file's
	known   map[string]bool
	claimed []string // what begins so is not reported as unknown

	// Hint, if not nil, is what else is to be said of a variable that nothing reads, and whether that
	// is all: no name is suggested then.
	Hint func(name string) (text string, all bool)

	Errs []error // what is wrong with what was read
	// by a setting's first name: its value's origin
	Sources map[string]string
}

// New reads what is no variable of the environment. configFile is the YAML file, or empty for none.
func New(lookup func(string) (string, bool), configFile string) *Values {
	v := &Values{lookup: lookup, known: make(map[string]bool), Sources: make(map[string]string)}
	if dir, _ := lookup(secretsDir); dir != "" {
		v.readSecrets(dir)
	}
	if configFile == "" {
		return v
	}
	text, err := os.ReadFile(configFile)
	if err != nil {
		v.fail("--config: open %s: %w", address.Argument(configFile), cause(err))
		return v
	}
	configFile = address.Argument(configFile)
	var raw map[string]any
	if err := yamltext.Read(string(text), &raw); err != nil {
		v.fail("--config %s: %w: want lines such as BROKER_TYPE: kafka", configFile, err)
		return v
	}
	v.file = make(map[string]string, len(raw))
	for name, value := range raw {
		if name == "sinks" || name == "routes" {
			continue
		}
		text, ok := textOf(value)
		if !ok {
			v.fail("--config %s: %s: want a single value or a list", configFile, ShownName(name))
			continue
		}
		v.file[name] = text
	}
	if sinks, ok := raw["sinks"]; ok {
		v.readSinks(configFile, sinks)
	}
	if routes, ok := raw["routes"]; ok {
		v.readRoutes(configFile, routes)
	}
	return v
}

// textOf is a value of the YAML file as a variable has it.
func textOf(value any) (text string, ok bool) {
	switch x := value.(type) {
	case string, int, float64, bool:
		return fmt.Sprint(x), true
	case []any:
		var list []string
		for _, item := range x {
			list = append(list, fmt.Sprint(item))
		}
		return strings.Join(list, ","), true
	default:
		return "", false
	}
}

// cause takes the name of the file out of an error: it may be a secret that got into the place of
// one.
func cause(err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

// ShownName is a setting's name as it may be repeated: what is none may be an address with its
// password.
func ShownName(name string) string {
	if settingName.MatchString(name) {
		return name
	}
	return "a name that is no setting's (not shown)"
}

// secretsDir names a directory with one file a setting, called as the setting is.
const secretsDir = "RELAY_SECRETS_DIR"

// settingName is what a file of that directory is called if it is meant as a setting.
var settingName = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// readSecrets reads a directory as Kubernetes mounts a secret: the files may be links, and there
// are hidden directories next to them.
func (v *Values) readSecrets(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		v.fail("%s: open %s: %w", secretsDir, address.Path(dir), cause(err))
		return
	}
	v.secrets = make(map[string]string)
	for _, entry := range entries {
		if name := entry.Name(); settingName.MatchString(name) {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				v.fail("%s: %s: %w", secretsDir, name, cause(err))
				continue
			}
			v.secrets[name] = strings.TrimRight(string(text), "\r\n")
		}
	}
}

// fail notes what is wrong with a variable, once: several rooms may read the same one.
func (v *Values) fail(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	if !slices.ContainsFunc(v.Errs, func(e error) bool { return e.Error() == err.Error() }) {
		v.Errs = append(v.Errs, err)
	}
}

// get returns the value of one name, from wherever it is given; it is not empty if set.
func (v *Values) get(name string) (string, bool) {
	v.known[name], v.known[name+"_FILE"] = true, true
	// An empty value counts as not set, as in the library: templates leave many of those behind.
	value, _ := v.lookup(name)
	path, _ := v.lookup(name + "_FILE")
	if value == "" && path == "" {
		value = v.secrets[name]
	}
	if value == "" && path == "" {
		value, path = v.file[name], v.file[name+"_FILE"]
	}
	if value != "" && path != "" {
		v.fail("%s and %s_FILE are both set: want one of them", name, name)
		return "", false
	}
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			v.fail("%s_FILE: want the name of a file that can be read: %w", name, cause(err))
			return "", false
		}
		value = strings.TrimRight(string(text), "\r\n")
	}
	if fault := unfit(value); fault != "" {
		v.fail("%s: %s", name, fault)
		return "", false
	}
	return value, value != ""
}

// longestValue bounds a setting: a list of all brokers of a cluster is far below, a file named by
// mistake is not.
const longestValue = 64 << 10

// unfit returns what keeps a value from being any setting's; it does not repeat the value.
func unfit(value string) string {
	switch {
	case len(value) > longestValue:
		return fmt.Sprintf("want at most %d bytes, got %d", longestValue, len(value))
	case !utf8.ValidString(value):
		return "want UTF-8 text"
	case strings.ContainsRune(value, 0):
		return "want text without NUL bytes"
	default:
		return ""
	}
}

// source returns where a name's value comes from, without the value.
func (v *Values) source(name string) string {
	value, _ := v.lookup(name)
	path, _ := v.lookup(name + "_FILE")
	switch {
	case value != "":
		return name
	case path != "":
		return name + "_FILE"
	case v.secrets[name] != "":
		return name + " in " + secretsDir
	case v.file[name] != "":
		return name + " in --config"
	default:
		return name + "_FILE in --config"
	}
}

// first returns the value of a setting with several names.
func (v *Values) first(names []string) (name, value string, set bool) {
	for _, n := range names {
		got, ok := v.get(n)
		if !ok {
			continue
		}
		if set && got != value {
			v.fail("%s and %s mean the same and are set differently: remove one of them", name, n)
		}
		if !set {
			name, value, set = n, got, true
		}
	}
	return name, value, set
}

// Fill sets the fields of the struct that target points to.
func (v *Values) Fill(target any) { v.FillFields(Fields(target)) }

// FillFields sets fields, which may have other names than in their struct; see Renamed.
func (v *Values) FillFields(fields []Field) {
	for _, f := range fields {
		name, value, set := v.first(f.Names)
		if f.Fallback != "" && !set {
			name, value, set = v.first([]string{f.Fallback})
		}
		if !set {
			continue
		}
		v.Sources[f.Names[0]] = v.source(name)
		if err := f.check(strings.TrimSpace(value)); err != nil {
			v.fail("%s: %w", name, err)
			continue
		}
		if err := parseInto(f.Value, value); err != nil {
			shown := address.Argument(value)
			if f.Secret != NotSecret {
				shown = "…"
			}
			v.fail("%s=%s: %w", name, shown, err)
		}
	}
}

func parseInto(field reflect.Value, value string) error {
	value = strings.TrimSpace(value)
	switch target := field.Addr().Interface().(type) {
	case *string:
		*target = value
	case *int:
		n, err := strconv.Atoi(value)
		if err != nil {
			return errors.New("want a whole number")
		}
		*target = n
	case *bool:
		switch strings.ToLower(value) {
		case "true", "1", "yes", "on":
			*target = true
		case "false", "0", "no", "off":
			*target = false
		default:
			return errors.New("want true or false")
		}
	case *time.Duration:
		d, err := parseDuration(value)
		if err != nil {
			return err
		}
		*target = d
	case *[]string:
		*target = nil
		for _, item := range strings.Split(value, ",") {
			if item = strings.TrimSpace(item); item != "" {
				*target = append(*target, item)
			}
		}
	default:
		panic(fmt.Sprintf("config field of type %s: the loader does not know it", field.Type()))
	}
	return nil
}

// parseDuration takes Go's form (250ms, 1m30s) and, as the library does, a bare number of seconds.
func parseDuration(value string) (time.Duration, error) {
	if d, err := time.ParseDuration(value); err == nil {
		return d, nil
	}
	seconds, err := strconv.ParseFloat(value, 64)
	if err != nil || !(seconds >= -1e9 && seconds <= 1e9) { // NaN is neither
		return 0, errors.New("want a duration such as 500ms, 5s or 2m, or a number of seconds")
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// Strangers reports RELAY_ variables that nothing reads: a typo there would silently be a default.
func (v *Values) Strangers(environ []string) {
	if path, _ := v.lookup(secretsDir + "_FILE"); path != "" || v.file[secretsDir] != "" || v.file[secretsDir+"_FILE"] != "" {
		v.fail("%s: want it in the environment: it is read before everything else", secretsDir)
	}
	names := make([]string, 0, len(v.file))
	for name := range v.file {
		if !v.known[name] {
			names = append(names, name)
		}
	}
	for name := range v.secrets {
		if !v.known[name] {
			names = append(names, name+" in "+secretsDir)
		}
	}
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "RELAY_") && !v.known[name] {
			names = append(names, name)
		}
	}
	names = slices.DeleteFunc(names, v.isClaimed)
	sort.Strings(names)
	for _, name := range names {
		bare, in, _ := strings.Cut(name, " ")
		hint, all := "", false
		if v.Hint != nil {
			hint, all = v.Hint(bare)
		}
		if near := v.Nearest(bare); near != "" && !all {
			hint += ": did you mean " + near + "?"
		}
		if upper := strings.ToUpper(bare); upper != bare && v.known[upper] {
			v.fail("%s is there in small letters: names of settings are in capitals", strings.TrimSpace(upper+" "+in))
			continue
		}
		if !settingName.MatchString(bare) {
			v.fail("%s: no such setting", ShownName(bare))
			continue
		}
		v.fail("%s: no such setting%s", strings.TrimSpace(bare+" "+in), hint)
	}
}

// otherStandards are variables of others that differ little from ours.
var otherStandards = regexp.MustCompile(`^OTEL_(BLRP|LOGS|METRICS?)_`)

// Typos reports variables that nothing reads and that are called almost as one of ours: a setting
// that was meant to be made. They may be somebody else's, so it is no error.
func (v *Values) Typos(environ []string) []string {
	var warnings []string
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if value == "" || v.known[name] || strings.HasPrefix(name, "RELAY_") || len(name) < 6 || !settingName.MatchString(name) || otherStandards.MatchString(name) ||
			strings.HasPrefix(value, "tcp://") { // what Kubernetes sets for a service
			continue
		}
		if near := v.Nearest(name); near != "" && editDistance(name, near) <= 2 {
			warnings = append(warnings, fmt.Sprintf("%s is set and is no setting: did you mean %s?", name, near))
		}
	}
	sort.Strings(warnings)
	return warnings
}

// Nearest returns the known name that differs least, if it differs little.
func (v *Values) Nearest(name string) string {
	best, least := "", 4
	for known := range v.known {
		if d := editDistance(name, known); d < least || d == least && known < best {
			best, least = known, d
		}
	}
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
