package variables

import (
	"reflect"
	"testing"
)

// A tag that reflect would read in part, or another way than it was meant, is refused: the setting
// would be shown.
func TestTagsRefused(t *testing.T) {
	for _, tag := range []reflect.StructTag{
		`env:"RELAY_X" secret:true`, `env:"RELAY_X" secret:"yes"`, `env:"RELAY_X" secret:""`, `env:"RELAY_X" secrets:"true"`, `env:"RELAY_X",secret:"true"`, `env:"RELAY_X"  secret:"true"`,
		`env:"RELAY_X" Secret:"true"`, `env: "RELAY_X" secret:"true"`, `env:"RELAY_X,secret"`, `env:"RELAY_X" secret`, `secret:"true"`, `env:"" secret:"true"`, `env:"relay_x"`, `env:"RELAY_X" env:"RELAY_Y"`,
		`env:"RELAY_X_PASSWORD"`, `env:"RELAY_X_URL"`, `env:"RELAY_X,X_TOKEN"`, `json:"x" env:"RELAY_X"`, `env:"RELAY_X" fallback:"x y"`,
	} {
		if _, err := ParseTag("X", tag); err == nil {
			t.Errorf("`%s`: accepted", tag)
		}
	}
	for tag, want := range map[reflect.StructTag]Secrecy{
		`env:"RELAY_X"`: NotSecret, `env:"RELAY_X,X_Y" fallback:"Z"`: NotSecret, `env:"X_PASSWORD" secret:"true"`: Secret, `env:"RELAY_KEY_FILE" secret:"path"`: SecretPath,
	} {
		if f, err := ParseTag("X", tag); err != nil || f.Secret != want {
			t.Errorf("`%s`: got %+v, %v", tag, f, err)
		}
	}
	if f, err := ParseTag("X", ""); f != nil || err != nil {
		t.Errorf("no tag: got %+v, %v, want no setting", f, err)
	}
}
