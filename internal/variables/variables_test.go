package variables

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// sampleConfig has a field of each kind.
type sampleConfig struct {
	Text    string        `env:"RELAY_TEXT"`
	Size    int           `env:"BATCH_SIZE,WORKER_BATCH_SIZE"`
	On      bool          `env:"RELAY_ON"`
	Wait    time.Duration `env:"POLL_INTERVAL,WORKER_POLL_INTERVAL_SECONDS"`
	Names   []string      `env:"RELAY_NAMES"`
	Servers string        `env:"KAFKA_BOOTSTRAP_SERVERS" fallback:"BROKER_URL"`
	PIN     int           `env:"RELAY_PIN" secret:"true"`
	Other   string        // no setting
	Secrets string        `env:"RELAY_SECRETS_DIR"`
}

func writeFile(t *testing.T, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// loadSample fills a sampleConfig from an environment and the text of a YAML file, which may be
// empty.
func loadSample(t *testing.T, env map[string]string, yaml string) (sampleConfig, error) {
	t.Helper()
	file := ""
	if yaml != "" {
		file = writeFile(t, "relay.yaml", yaml)
	}
	v := New(func(name string) (string, bool) { value, ok := env[name]; return value, ok }, file)
	cfg := sampleConfig{Text: "default", Size: 7, Wait: time.Second, Other: "untouched"}
	v.Fill(&cfg)
	var environ []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		environ = append(environ, name+"="+env[name])
	}
	v.Strangers(environ)
	return cfg, errors.Join(v.Errs...)
}

func TestVariables(t *testing.T) {
	secret := writeFile(t, "secret", "kafka-1:9092\r\n")
	for _, tt := range []struct {
		name string
		env  map[string]string
		yaml string
		want func(*sampleConfig) // what differs from the defaults
	}{
		{"Nothing", nil, "", func(*sampleConfig) {}},
		{
			"Environment",
			map[string]string{"RELAY_TEXT": " x ", "BATCH_SIZE": "12", "RELAY_ON": "Yes", "POLL_INTERVAL": "250ms", "RELAY_NAMES": "a, b,,c"},
			"",
			func(c *sampleConfig) {
				c.Text, c.Size, c.On, c.Wait, c.Names = "x", 12, true, 250*time.Millisecond, []string{"a", "b", "c"}
			},
		},
		{"OtherName", map[string]string{"WORKER_BATCH_SIZE": "12"}, "", func(c *sampleConfig) { c.Size = 12 }},
		{"BothNamesEqual", map[string]string{"BATCH_SIZE": "12", "WORKER_BATCH_SIZE": "12"}, "", func(c *sampleConfig) { c.Size = 12 }},
		{"Seconds", map[string]string{"POLL_INTERVAL": "5"}, "", func(c *sampleConfig) { c.Wait = 5 * time.Second }},
		{"FractionOfSeconds", map[string]string{"WORKER_POLL_INTERVAL_SECONDS": "0.25"}, "", func(c *sampleConfig) { c.Wait = 250 * time.Millisecond }},
		{"MinutesAndSeconds", map[string]string{"POLL_INTERVAL": "1m30s"}, "", func(c *sampleConfig) { c.Wait = 90 * time.Second }},
		{"Empty", map[string]string{"RELAY_TEXT": "", "BATCH_SIZE": "", "WORKER_BATCH_SIZE": "9"}, "", func(c *sampleConfig) { c.Size = 9 }},
		{"Fallback", map[string]string{"BROKER_URL": "kafka:9092"}, "", func(c *sampleConfig) { c.Servers = "kafka:9092" }},
		{"FallbackNotNeeded", map[string]string{"BROKER_URL": "a:1", "KAFKA_BOOTSTRAP_SERVERS": "b:2"}, "", func(c *sampleConfig) { c.Servers = "b:2" }},
		{"NameFile", map[string]string{"KAFKA_BOOTSTRAP_SERVERS_FILE": secret}, "", func(c *sampleConfig) { c.Servers = "kafka-1:9092" }},
		{"NameFileOfTheFallback", map[string]string{"BROKER_URL_FILE": secret}, "", func(c *sampleConfig) { c.Servers = "kafka-1:9092" }},
		{"NameFileBesideAnEmptyName", map[string]string{"KAFKA_BOOTSTRAP_SERVERS": "", "KAFKA_BOOTSTRAP_SERVERS_FILE": secret}, "", func(c *sampleConfig) { c.Servers = "kafka-1:9092" }},
		{
			"YAML", nil, "RELAY_TEXT: x\nBATCH_SIZE: 12\nRELAY_ON: true\nPOLL_INTERVAL: 2.5\nRELAY_NAMES: [a, b]\n",
			func(c *sampleConfig) {
				c.Text, c.Size, c.On, c.Wait, c.Names = "x", 12, true, 2500*time.Millisecond, []string{"a", "b"}
			},
		},
		{"YAMLNamesAFile", nil, "KAFKA_BOOTSTRAP_SERVERS_FILE: " + secret, func(c *sampleConfig) { c.Servers = "kafka-1:9092" }},
		{"EnvironmentBeforeYAML", map[string]string{"BATCH_SIZE": "12"}, "BATCH_SIZE: 13\nRELAY_TEXT: x", func(c *sampleConfig) { c.Size, c.Text = 12, "x" }},
		{"EnvironmentsFileBeforeYAML", map[string]string{"KAFKA_BOOTSTRAP_SERVERS_FILE": secret}, "KAFKA_BOOTSTRAP_SERVERS: a:1", func(c *sampleConfig) { c.Servers = "kafka-1:9092" }},
		{"EmptyEnvironmentBeforeYAML", map[string]string{"BATCH_SIZE": ""}, "BATCH_SIZE: 13", func(c *sampleConfig) { c.Size = 13 }},
		{"StrangersThatAreNotOurs", map[string]string{"PATH": "/bin", "KAFKA_OTHER": "1"}, "", func(*sampleConfig) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := loadSample(t, tt.env, tt.yaml)
			if err != nil {
				t.Fatal(err)
			}
			want := sampleConfig{Text: "default", Size: 7, Wait: time.Second, Other: "untouched"}
			tt.want(&want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// secretsMount is a directory as Kubernetes mounts a secret: the files are links into a hidden
// directory.
func secretsMount(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "..data"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, "..data", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSecretsDir(t *testing.T) {
	pin := writeFile(t, "pin", "3")
	for _, tt := range []struct {
		name  string
		files map[string]string
		env   map[string]string
		yaml  string
		want  func(*sampleConfig) // what differs from the defaults
		err   string              // the whole error
	}{
		{name: "Files", files: map[string]string{"RELAY_TEXT": "x\n", "RELAY_PIN": "4", "ca.crt": "-----BEGIN"}, want: func(c *sampleConfig) { c.Text, c.PIN = "x", 4 }},
		{name: "EnvironmentGoesFirst", files: map[string]string{"RELAY_TEXT": "x"}, env: map[string]string{"RELAY_TEXT": "y"}, want: func(c *sampleConfig) { c.Text = "y" }},
		{name: "EnvironmentsFileGoesFirst", files: map[string]string{"RELAY_PIN": "4"}, env: map[string]string{"RELAY_PIN_FILE": pin}, want: func(c *sampleConfig) { c.PIN = 3 }},
		{name: "BeforeYAML", files: map[string]string{"RELAY_TEXT": "x"}, yaml: "RELAY_TEXT: z\nBATCH_SIZE: 12", want: func(c *sampleConfig) { c.Text, c.Size = "x", 12 }},
		{name: "EmptyIsNotSet", files: map[string]string{"RELAY_TEXT": "\n"}, want: func(*sampleConfig) {}},
		{name: "Fallback", files: map[string]string{"BROKER_URL": "kafka:9092"}, want: func(c *sampleConfig) { c.Servers = "kafka:9092" }},
		{name: "NotShown", files: map[string]string{"RELAY_PIN": "98x7"}, err: "RELAY_PIN=…: want a whole number"},
		{name: "Unknown", files: map[string]string{"RELAY_TXET": "x"}, err: "RELAY_TXET in RELAY_SECRETS_DIR: no such setting: did you mean RELAY_TEXT?"},
		{name: "SecretsDirInYAML", yaml: "RELAY_SECRETS_DIR: /etc/sagaz", err: "RELAY_SECRETS_DIR: want it in the environment: it is read before everything else"},
		{name: "NoDirectory", env: map[string]string{"RELAY_SECRETS_DIR": "/nowhere"}, err: "RELAY_SECRETS_DIR: open /nowhere: no such file or directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := map[string]string{"RELAY_SECRETS_DIR": secretsMount(t, tt.files)}
			maps.Copy(env, tt.env)
			got, err := loadSample(t, env, tt.yaml)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := sampleConfig{Text: "default", Size: 7, Wait: time.Second, Other: "untouched", Secrets: env["RELAY_SECRETS_DIR"]}
			tt.want(&want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestVariablesRefused(t *testing.T) {
	secret := writeFile(t, "secret", "98x7")
	for _, tt := range []struct {
		name string
		env  map[string]string
		yaml string
		want string // the whole error
	}{
		{"NoNumber", map[string]string{"BATCH_SIZE": "1e3"}, "", "BATCH_SIZE=1e3: want a whole number"},
		{"TheNameThatWasTyped", map[string]string{"WORKER_BATCH_SIZE": "x"}, "", "WORKER_BATCH_SIZE=x: want a whole number"},
		{"NoBool", map[string]string{"RELAY_ON": "maybe"}, "", "RELAY_ON=maybe: want true or false"},
		{"NoDuration", map[string]string{"POLL_INTERVAL": "soon"}, "", "POLL_INTERVAL=soon: want a duration such as 500ms, 5s or 2m, or a number of seconds"},
		{"DurationNaN", map[string]string{"POLL_INTERVAL": "NaN"}, "", "POLL_INTERVAL=NaN: want a duration such as 500ms, 5s or 2m, or a number of seconds"},
		{"BothNamesDifferent", map[string]string{"BATCH_SIZE": "1", "WORKER_BATCH_SIZE": "2"}, "", "BATCH_SIZE and WORKER_BATCH_SIZE mean the same and are set differently: remove one of them"},
		{"NameAndFile", map[string]string{"RELAY_TEXT": "x", "RELAY_TEXT_FILE": secret}, "", "RELAY_TEXT and RELAY_TEXT_FILE are both set: want one of them"},
		{"NoFile", map[string]string{"RELAY_TEXT_FILE": "/nowhere/secret"}, "", "RELAY_TEXT_FILE: want the name of a file that can be read: no such file or directory"},
		{"SecretFromTheEnvironment", map[string]string{"RELAY_PIN": "98x7"}, "", "RELAY_PIN=…: want a whole number"},
		{"SecretFromAFile", map[string]string{"RELAY_PIN_FILE": secret}, "", "RELAY_PIN=…: want a whole number"},
		{"SecretFromYAML", nil, "RELAY_PIN: 98x7", "RELAY_PIN=…: want a whole number"},
		{"Unknown", map[string]string{"RELAY_TXET": "1"}, "", "RELAY_TXET: no such setting: did you mean RELAY_TEXT?"},
		{"UnknownAndUnlikeAny", map[string]string{"RELAY_SOMETHING_ELSE": "1"}, "", "RELAY_SOMETHING_ELSE: no such setting"},
		{"UnknownFile", map[string]string{"RELAY_TEXTS_FILE": "1"}, "", "RELAY_TEXTS_FILE: no such setting: did you mean RELAY_TEXT_FILE?"},
		{"SmallLettersInYAML", nil, "batch_size: 1", "BATCH_SIZE is there in small letters: names of settings are in capitals"},
		{"UnknownInYAML", nil, "BATCH_SIZES: 1", "BATCH_SIZES: no such setting: did you mean BATCH_SIZE?"},
		{
			"Several",
			map[string]string{"BATCH_SIZE": "x", "RELAY_ON": "x", "RELAY_TEXTT": "x"},
			"",
			"BATCH_SIZE=x: want a whole number\nRELAY_ON=x: want true or false\nRELAY_TEXTT: no such setting: did you mean RELAY_TEXT?",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := loadSample(t, tt.env, tt.yaml)
			if err == nil || err.Error() != tt.want {
				t.Errorf("\n got %v\nwant %s", err, tt.want)
			}
		})
	}
	for name, yaml := range map[string]string{
		"NoMapping": "- RELAY_TEXT", "Nested": "RELAY_TEXT: {a: b}", "NoYAML": "RELAY_TEXT: [", "SecondDocument": "RELAY_TEXT: a\n---\nRELAY_ON: true",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := loadSample(t, nil, yaml); err == nil || !strings.Contains(err.Error(), "--config") {
				t.Errorf("got %v, want an error about --config", err)
			}
		})
	}
}

// What is no text of a setting's size is refused by the variable's name, and not repeated.
func TestVariablesUnfit(t *testing.T) {
	for name, value := range map[string]string{
		"no UTF-8": "caf\xe9", "cut in the middle": "né"[:2], "NUL": "a\x00b", "endless": strings.Repeat("x", longestValue+1),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadSample(t, map[string]string{"RELAY_TEXT": value}, "")
			if err == nil || !strings.Contains(err.Error(), "RELAY_TEXT: want ") || strings.Contains(err.Error(), value) {
				t.Errorf("got %.200v", err)
			}
		})
	}
	if _, err := loadSample(t, map[string]string{"RELAY_TEXT": strings.Repeat("é", longestValue/2)}, ""); err != nil {
		t.Error(err)
	}
}
