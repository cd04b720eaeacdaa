package variables

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/sagaz-relay/relay/internal/address"
)

// Field is a field of a Config struct that variables set. Its tag has their names, and how secret
// its value is:
//
//	env:"A,B"         A is the name, B another one for the same; both set differently is an error
//	fallback:"C"      used when neither is set
//	secret:"true"     never shown
//	secret:"database" never shown; a connection string of PostgreSQL
//	secret:"address"  shown without what may be a password
//	secret:"path"     the name of a secret's file: shown, unless the secret itself is there
type Field struct {
	Names    []string
	Fallback string
	Secret   Secrecy
	Value    reflect.Value
}

// Secrecy is how secret a setting is.
type Secrecy string

const (
	NotSecret      Secrecy = ""
	Secret         Secrecy = "true"
	SecretDatabase Secrecy = "database"
	SecretAddress  Secrecy = "address"
	SecretPath     Secrecy = "path"
)

// tagPair is the one form that a tag's parts have. reflect silently stops reading at a part of
// another form.
var tagPair = regexp.MustCompile(`^([a-z]+):("(?:[^"\\]|\\.)*")(?: |$)`)

// secretNames are parts of names whose values are secret, whatever is in their tag.
var secretNames = regexp.MustCompile(`(^|_)(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS?|HEADERS|DSN|URL|KEY_FILE|CLIENT_KEY|APIKEY|API_KEY)(_|$)`)

// CalledAsSecret reports whether a name is one of a secret, whatever is in its tag.
func CalledAsSecret(name string) bool { return secretNames.MatchString(name) }

// ParseTag reads a field's tag. It returns nil for a field that is no setting, and an error for a
// tag that does not make clear whether the value is secret.
func ParseTag(name string, tag reflect.StructTag) (*Field, error) {
	parts := make(map[string]string)
	for rest := string(tag); rest != ""; {
		m := tagPair.FindStringSubmatch(rest)
		if m == nil {
			return nil, fmt.Errorf("field %s: tag %q: want name:\"value\" with a space between", name, tag)
		}
		value, err := strconv.Unquote(m[2])
		if err != nil {
			return nil, fmt.Errorf("field %s: tag %q: %w", name, tag, err)
		}
		if _, twice := parts[m[1]]; twice || m[1] != "env" && m[1] != "fallback" && m[1] != "secret" {
			return nil, fmt.Errorf("field %s: tag %q: %s is unknown, or there twice", name, tag, m[1])
		}
		parts[m[1]] = value
		rest = strings.TrimPrefix(rest, m[0])
	}
	env, ok := parts["env"]
	if !ok {
		if len(parts) > 0 {
			return nil, fmt.Errorf("field %s: tag %q: has no env", name, tag)
		}
		return nil, nil
	}
	f := &Field{Names: strings.Split(env, ","), Fallback: parts["fallback"], Secret: Secrecy(parts["secret"])}
	for _, n := range append(f.Names, f.Fallback) {
		if n != "" && !settingName.MatchString(n) || f.Names[0] == "" {
			return nil, fmt.Errorf("field %s: tag %q: %q is no setting's name", name, tag, n)
		}
	}
	switch f.Secret {
	case NotSecret:
		if _, ok := parts["secret"]; ok {
			return nil, fmt.Errorf("field %s: tag %q: secret is empty", name, tag)
		}
		for _, n := range f.Names {
			if secretNames.MatchString(n) {
				return nil, fmt.Errorf("field %s: %s is called as a secret is: put secret into its tag", name, n)
			}
		}
	case Secret, SecretDatabase, SecretAddress, SecretPath:
	default:
		return nil, fmt.Errorf("field %s: tag %q: secret is true, database, address or path", name, tag)
	}
	return f, nil
}

// Fields lists the settings of the struct that target points to. The program does not start with a
// wrong tag, because the setting would be shown.
func Fields(target any) []Field {
	s := reflect.ValueOf(target).Elem()
	tags := tagsOf(s.Type())
	var fields []Field
	for i, f := range tags {
		if f != nil {
			fields = append(fields, Field{Names: f.Names, Fallback: f.Fallback, Secret: f.Secret, Value: s.Field(i)})
		}
	}
	return fields
}

// parsedTags are those of each struct, which do not change.
var parsedTags sync.Map

func tagsOf(t reflect.Type) []*Field {
	if tags, ok := parsedTags.Load(t); ok {
		return tags.([]*Field)
	}
	tags := make([]*Field, t.NumField())
	for i := range tags {
		f, err := ParseTag(t.Field(i).Name, t.Field(i).Tag)
		if err != nil {
			panic(fmt.Sprintf("%s: %v", t, err))
		}
		tags[i] = f
	}
	parsedTags.Store(t, tags)
	return tags
}

// check holds a value against the rules of its kind, before anything else reads it. Its error never
// repeats the value.
func (f *Field) check(value string) error {
	switch {
	case f.Secret == SecretDatabase:
		if err := address.Database(value); err != nil {
			return fmt.Errorf("cannot be read: %w", err)
		}
	case f.Secret == SecretPath || strings.HasSuffix(f.Names[0], "_FILE"):
		if address.Path(value) == address.Hidden {
			return errors.New("want the name of a file, this is something else")
		}
	}
	return nil
}

// Show renders a value that was set, for readers who may not know the secrets.
func (f *Field) Show(value string) string {
	switch f.Secret {
	case NotSecret:
		return value
	case SecretAddress:
		return address.Show(value)
	case SecretPath:
		return address.Path(value)
	default:
		return address.Hidden
	}
}
