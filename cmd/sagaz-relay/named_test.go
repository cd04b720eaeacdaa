package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/internal/variables"
	"github.com/sagaz-relay/relay/sinks/file"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// named loads settings from an environment, and from the text of a YAML file, which may be empty.
func named(t *testing.T, env map[string]string, yaml string) (*settings, error) {
	t.Helper()
	config := ""
	if yaml != "" {
		config = writeFile(t, "relay.yaml", yaml)
	}
	all := map[string]string{"DATABASE_URL": "postgresql://relay:s3cr3tword@127.0.0.1:1/shop"}
	maps.Copy(all, env)
	var environ []string
	for name, value := range all {
		environ = append(environ, name+"="+value)
	}
	slices.Sort(environ)
	s, err := loadSettings(func(name string) (string, bool) { v, ok := all[name]; return v, ok }, environ, config)
	if err == nil {
		err = s.all()
	}
	return s, err
}

// No two settings of a kind have one name for a named sink, none is another one's file, and none
// can be a setting of the program.
func TestNamesOfNamedSinks(t *testing.T) {
	for i := range sinkKinds {
		kind := &sinkKinds[i]
		rests := map[string]string{"KIND": "the kind itself", "KIND_FILE": "the kind's file"}
		own := 0
		for _, f := range variables.Fields(kind.config()) {
			for _, name := range f.Names {
				rest := strings.TrimPrefix(variables.OfSink("x", kind.name, name), variables.SinkPrefix("x"))
				if rest == "" {
					if name != "WORKER_ID" {
						t.Errorf("%s of %s cannot be set for a named sink", name, kind.name)
					}
					continue
				}
				own++
				for _, rest := range []string{rest, rest + "_FILE"} {
					if other := rests[rest]; other != "" {
						t.Errorf("%s: %s and %s meet in %s", kind.name, name, other, rest)
					}
					rests[rest] = name
				}
			}
		}
		if own == 0 && kind.name != "stdout" {
			t.Errorf("%s has no settings", kind.name)
		}
	}
	for _, v := range allVariables() {
		for _, name := range v.names {
			// What is left of a named sink's variable has an underscore at least.
			if rest, ok := strings.CutPrefix(name, "RELAY_SINK_"); ok && strings.Contains(rest, "_") {
				t.Errorf("%s could be a setting of the sink %s", name, strings.ToLower(rest))
			}
		}
	}
	names := []string{"a", "a1", "ab", "a-1", "orders-kafka", "orders", "x-y-z", "0"}
	for i, a := range names {
		for _, b := range names[:i] {
			overlap := strings.HasPrefix(variables.SinkPrefix(a), variables.SinkPrefix(b)) || strings.HasPrefix(variables.SinkPrefix(b), variables.SinkPrefix(a))
			_, err := named(t, map[string]string{"RELAY_SINKS": a + "," + b, variables.SinkPrefix(a) + "KIND": "stdout", variables.SinkPrefix(b) + "KIND": "file"}, "")
			if refused := err != nil && strings.Contains(err.Error(), "rename one of them"); refused != overlap || err != nil && !refused {
				t.Errorf("%s and %s: got %v", a, b, err)
			}
		}
	}
}

// A sink's settings are its own: what is not set has its kind's default, whatever others have.
func TestNamedSinks(t *testing.T) {
	secret := writeFile(t, "secret", "hush5\n")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "RELAY_SINK_AUDIT_RABBIT_URL"), []byte("amqp://u:hush6@mq-2/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{
		"BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "old:9092", "KAFKA_CLIENT_ID": "theirs", "RELAY_KAFKA_COMPRESSION": "zstd", "BROKER_URL": "url:9092", "WORKER_ID": "w-1",
		"RELAY_SINKS":                  "orders-kafka, returns-kafka,audit-rabbit",
		"RELAY_SINK_ORDERS_KAFKA_KIND": "Kafka", "RELAY_SINK_ORDERS_KAFKA_BOOTSTRAP_SERVERS": "a:9092,b:9092", "RELAY_SINK_ORDERS_KAFKA_BATCH_BYTES": "5000",
		"RELAY_SINK_ORDERS_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "RELAY_SINK_ORDERS_KAFKA_SASL_MECHANISM": "PLAIN", "RELAY_SINK_ORDERS_KAFKA_SASL_USERNAME": "u", "RELAY_SINK_ORDERS_KAFKA_SASL_PASSWORD_FILE": secret,
		"RELAY_SINK_RETURNS_KAFKA_KIND": "kafka", "RELAY_SINK_RETURNS_KAFKA_BOOTSTRAP_SERVERS": "c:9092",
		"RELAY_SINK_AUDIT_RABBIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_RABBIT_DECLARE": "false", "RELAY_SECRETS_DIR": dir,
	}
	s, err := named(t, env, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(s.used(), ","); got != "kafka,orders-kafka,returns-kafka,audit-rabbit" {
		t.Errorf("the sinks are %s", got)
	}
	old, orders, returns := s.sinks["kafka"].(*kafka.Config), s.sinks["orders-kafka"].(*kafka.Config), s.sinks["returns-kafka"].(*kafka.Config)
	if old.ClientID != "theirs" || old.Compression != "zstd" || old.BatchBytes != 1_000_000 || strings.Join(old.Brokers, ",") != "old:9092" {
		t.Errorf("kafka has %+v", old)
	}
	if orders.ClientID != "sagaz-relay" || orders.Compression != "none" || orders.BatchBytes != 5000 || strings.Join(orders.Brokers, ",") != "a:9092,b:9092" || orders.SASLPassword != "hush5" {
		t.Errorf("orders-kafka has %+v", orders)
	}
	if returns.BatchBytes != 1_000_000 || strings.Join(returns.Brokers, ",") != "c:9092" || returns.SASLUsername != "" {
		t.Errorf("returns-kafka has %+v", returns)
	}
	if audit := s.sinks["audit-rabbit"].(*rabbitmq.Config); audit.URL != "amqp://u:hush6@mq-2/" || audit.Declare || audit.WorkerID != "w-1" || audit.Exchange != "saga-events" {
		t.Errorf("audit-rabbit has %+v", audit)
	}
	if secrets := strings.Join(s.secrets(), " "); !strings.Contains(secrets, "hush5") || !strings.Contains(secrets, "hush6") {
		t.Error("a secret of a named sink is not known as one")
	}
	sinks, err := s.openSinks(hclog.NewNullLogger())
	if !old.ReadBack || !orders.ReadBack || !returns.ReadBack {
		t.Error("opening the sinks changes their settings")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer closeSinks(sinks, hclog.NewNullLogger())
	var names []string
	for _, sink := range sinks {
		names = append(names, sink.Name())
	}
	if got := strings.Join(names, ","); got != "kafka,orders-kafka,returns-kafka,audit-rabbit" {
		t.Errorf("the sinks are called %s", got)
	}
	var out strings.Builder
	if err := printSettings(&out, s.shown(), false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"RELAY_SINK_ORDERS_KAFKA_BATCH_BYTES  ", "RELAY_SINK_AUDIT_RABBIT_URL in RELAY_SECRETS_DIR", "RELAY_SINK_ORDERS_KAFKA_SASL_PASSWORD_FILE"} {
		if !strings.Contains(out.String(), want) || strings.Contains(out.String(), "hush") {
			t.Errorf("settings prints without %q, or with a secret:\n%s", want, out.String())
		}
	}
	for _, v := range s.shown() {
		if v.Names[0] == "RELAY_SINK_ORDERS_KAFKA_BATCH_BYTES" && (v.Default != "1000000" || v.Value != "5000") {
			t.Errorf("settings shows %+v", v)
		}
	}
}

// Without BROKER_TYPE the named sinks are all. YAML has the same as a list.
func TestNamedSinksInYAML(t *testing.T) {
	s, err := named(t, nil, `
sinks:
  - name: lines-a
    kind: file
    path: /tmp/a.jsonl
    FSYNC: false
  - {name: lines-b, KIND: file, PATH: /tmp/b.jsonl}
`)
	if err != nil {
		t.Fatal(err)
	}
	a, b := s.sinks["lines-a"].(*file.Config), s.sinks["lines-b"].(*file.Config)
	if strings.Join(s.used(), ",") != "lines-a,lines-b" || a.Path != "/tmp/a.jsonl" || a.Fsync || b.Path != "/tmp/b.jsonl" || !b.Fsync || s.relay.SinksByDefault != nil {
		t.Errorf("%v: %+v %+v", s.used(), a, b)
	}
	if from := s.sources["RELAY_SINK_LINES_A_PATH"]; from != "RELAY_SINK_LINES_A_PATH in --config" {
		t.Errorf("its path is from %q", from)
	}
	s, err = named(t, map[string]string{"RELAY_SINK_LINES_A_PATH": "/tmp/c.jsonl"}, "sinks: [{name: lines-a, kind: file, path: /tmp/a.jsonl}]")
	if err != nil || s.sinks["lines-a"].(*file.Config).Path != "/tmp/c.jsonl" {
		t.Errorf("the environment goes first: %v", err)
	}
}

func TestNamedSinksRefused(t *testing.T) {
	one := func(more map[string]string) map[string]string {
		env := map[string]string{"RELAY_SINKS": "audit", "RELAY_SINK_AUDIT_KIND": "stdout"}
		maps.Copy(env, more)
		return env
	}
	two := func(kind string, more map[string]string) map[string]string {
		env := map[string]string{"RELAY_SINKS": "a,b", "RELAY_SINK_A_KIND": kind, "RELAY_SINK_B_KIND": kind}
		maps.Copy(env, more)
		return env
	}
	path := filepath.Join(t.TempDir(), "x.jsonl")
	link := path + "-link"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		env  map[string]string
		yaml string
		want string
	}{
		"Twice":          {env: map[string]string{"RELAY_SINKS": "a,a", "RELAY_SINK_A_KIND": "stdout"}, want: "RELAY_SINKS: a occurs twice"},
		"TwiceInYAML":    {yaml: "sinks: [{name: a, kind: stdout}, {name: a, kind: stdout}]", want: "sinks: a occurs twice"},
		"UnknownKind":    {env: one(map[string]string{"RELAY_SINK_AUDIT_KIND": "pigeon", "RELAY_SINK_AUDIT_WINGS": "2"}), want: "RELAY_SINK_AUDIT_KIND=pigeon: want kafka, rabbitmq, file, stdout"},
		"NoKind":         {env: map[string]string{"RELAY_SINKS": "audit", "RELAY_SINK_AUDIT_PATH": "x"}, want: "RELAY_SINK_AUDIT_KIND: not set: want kafka, rabbitmq, file, stdout"},
		"NoKindInYAML":   {yaml: "sinks: [{name: audit}]", want: "RELAY_SINK_AUDIT_KIND: not set"},
		"UpperCase":      {env: map[string]string{"RELAY_SINKS": "Audit"}, want: "RELAY_SINKS=Audit: want names of 1 to 40 lower-case letters"},
		"Underscore":     {env: map[string]string{"RELAY_SINKS": "saga_outbox"}, want: "RELAY_SINKS=saga_outbox: want names of 1 to 40"},
		"HyphenAtTheEnd": {env: map[string]string{"RELAY_SINKS": "a-"}, want: "RELAY_SINKS=a-: want names of 1 to 40"},
		"TooLong":        {env: map[string]string{"RELAY_SINKS": strings.Repeat("a", 41)}, want: ": want names of 1 to 40"},
		"BadNameInYAML":  {yaml: "sinks: [{name: A B, kind: file}]", want: "sinks: number 1: RELAY_SINKS=A B: want names"},
		"NoList":         {yaml: "sinks: {a: file}", want: "sinks: want a list of mappings"},
		"NoName":         {yaml: "sinks: [{kind: file}]", want: "sinks: number 1: want a mapping with name"},
		"BothInYAML":     {yaml: "sinks: [{name: a, kind: file}]\nRELAY_SINKS: b", want: "sinks and RELAY_SINKS are both set"},
		"UnknownInYAML":  {yaml: "sinks: [{name: a, kind: file, pahts: x}]", want: "RELAY_SINK_A_PAHTS: no such setting: did you mean RELAY_SINK_A_PATH?"},
		"AKind":          {env: map[string]string{"RELAY_SINKS": "kafka", "RELAY_SINK_KAFKA_KIND": "kafka"}, want: "RELAY_SINKS: kafka is what BROKER_TYPE calls its own sink: want another name"},
		"OwnTopic":       {yaml: "sinks: [{name: a, kind: nats, url: 'nats://h', topic: x}]", want: "RELAY_SINK_A_TOPIC: no such setting: a sink's own topic or routing key is set by a rule"},
		"Unlisted":       {env: one(map[string]string{"RELAY_SINK_LEDGERS_COMPRESSION": "zstd"}), want: "RELAY_SINK_LEDGERS_COMPRESSION: no such setting: no sink that RELAY_SINKS lists has settings that begin so"},
		"NothingListed":  {env: map[string]string{"BROKER_TYPE": "stdout", "RELAY_SINK_AUDIT_KIND": "file"}, want: "RELAY_SINK_AUDIT_KIND: no such setting: no sink that RELAY_SINKS lists"},
		"Typo":           {env: one(map[string]string{"RELAY_SINK_AUDIT_KIND": "file", "RELAY_SINK_AUDIT_PAHT": "x"}), want: "RELAY_SINK_AUDIT_PAHT: no such setting: did you mean RELAY_SINK_AUDIT_PATH?"},
		"OfAnotherKind":  {env: one(map[string]string{"RELAY_SINK_AUDIT_BOOTSTRAP_SERVERS": "x"}), want: "RELAY_SINK_AUDIT_BOOTSTRAP_SERVERS: no such setting"},
		"OnePath":        {env: two("file", map[string]string{"RELAY_SINK_A_PATH": path, "RELAY_SINK_B_PATH": filepath.Dir(path) + "/./x.jsonl"}), want: "sinks a and b both write to " + filepath.Dir(path) + "/./x.jsonl: want a file for each"},
		"OneFile":        {env: two("file", map[string]string{"RELAY_SINK_A_PATH": path, "RELAY_SINK_B_PATH": link}), want: "sinks a and b both write to"},
		"TheDefaultPath": {env: map[string]string{"BROKER_TYPE": "file", "RELAY_SINKS": "a", "RELAY_SINK_A_KIND": "file"}, want: "sinks file and a both write to outbox-events.jsonl"},
		"TwoStdouts":     {env: two("stdout", nil), want: "sinks a and b both write to standard output"},
		"NoNumber":       {env: one(map[string]string{"RELAY_SINK_AUDIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_WINDOW": "x"}), want: "RELAY_SINK_AUDIT_WINDOW=x: want a whole number"},
		"Window":         {env: one(map[string]string{"RELAY_SINK_AUDIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_WINDOW": "0"}), want: "RELAY_SINK_AUDIT_WINDOW=0: want 1 to"},
		"NoAddress":      {env: one(map[string]string{"RELAY_SINK_AUDIT_KIND": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "k:9092", "BROKER_URL": "k:9092"}), want: "RELAY_SINK_AUDIT_BOOTSTRAP_SERVERS is not set: want"},
		"SlowerThanAnOffer": {
			env:  one(map[string]string{"RELAY_SINK_AUDIT_KIND": "webhook", "RELAY_SINK_AUDIT_URL": "https://audit.example/", "RELAY_SINK_AUDIT_TIMEOUT": "31s"}),
			want: "RELAY_SINK_AUDIT_TIMEOUT=31s: want at most 30s, since an offer to a sink lasts no longer (RELAY_SINK_ISOLATION, RELAY_PUBLISH_TIMEOUT)",
		},
		"PasswordIsHidden": {env: one(map[string]string{"RELAY_SINK_AUDIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_URL": "amqp://u:a/s3cr3tword@mq/"}), want: "RELAY_SINK_AUDIT_URL"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := named(t, tt.env, tt.yaml)
			if err == nil || !strings.Contains(err.Error(), tt.want) || exitCode(err) != exitConfig || strings.Contains(err.Error(), "s3cr3tword") {
				t.Errorf("got %v\nwant exit code 2, no secret, and %s", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") && name != "BothInYAML" {
				t.Errorf("more than one line: %v", err)
			}
		})
	}
}

// What a sink says of its settings at work has their names for it.
func TestNamedSinkSaysItsOwnSettings(t *testing.T) {
	s, err := named(t, map[string]string{"RELAY_SINKS": "audit", "RELAY_SINK_AUDIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_URL": "amqp://u:s3cr3tword@127.0.0.1:1/"}, "")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	sinks, err := s.openSinks(hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer closeSinks(sinks, hclog.NewNullLogger())
	s.lookForBrokers(t.Context(), sinks, hclog.New(&hclog.LoggerOptions{Output: &log}))
	if text := log.String(); !strings.Contains(text, "sink=audit") || !strings.Contains(text, "RELAY_SINK_AUDIT_URL") || strings.Contains(text, " RABBITMQ_URL") || strings.Contains(text, "s3cr3tword") {
		t.Errorf("the log is %q", text)
	}
}

// Whoever sets only BROKER_TYPE has the names that there were before there were others.
func TestOldNamesStay(t *testing.T) {
	s, err := named(t, map[string]string{"BROKER_TYPE": "kafka,RabbitMQ,file,stdout", "KAFKA_BOOTSTRAP_SERVERS": "k:9092"}, "")
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	sinks, err := s.openSinks(hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace}))
	if err != nil {
		t.Fatal(err)
	}
	defer closeSinks(sinks, hclog.NewNullLogger())
	var names []string
	for _, sink := range sinks {
		names = append(names, sink.Name())
	}
	if got := strings.Join(names, ","); got != "kafka,rabbitmq,file,stdout" {
		t.Errorf("the sinks are called %s", got)
	}
	for _, v := range s.shown() {
		if strings.HasPrefix(v.Names[0], "RELAY_SINK_") && v.Names[0] != "RELAY_SINK_ISOLATION" {
			t.Errorf("a setting more: %s", v.Names[0])
		}
	}
}

func TestSinksCommand(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated(), pgtest.SQL(`
		INSERT INTO saga_outbox_relay (slot, epoch, owner, released_at, sinks) VALUES ('sagaz_outbox', 3, 'relay-1', now(), 'rabbitmq');
		INSERT INTO saga_outbox_delivery (event_id, sink, slot, position, partition_key, key_hash, event_type, state)
			SELECT gen_random_uuid(), sink, 'sagaz_outbox', i, 'k', 1, 'T', CASE WHEN i = 1 THEN 'dead' ELSE 'held' END FROM unnest(ARRAY['rabbitmq', 'gone', 'saga_outbox']) sink, generate_series(1, 3) i`))
	env := map[string]string{
		"DATABASE_URL": db.DSN, "BROKER_TYPE": "kafka", "KAFKA_BOOTSTRAP_SERVERS": "k:9092",
		"RELAY_SINKS": "audit", "RELAY_SINK_AUDIT_KIND": "rabbitmq", "RELAY_SINK_AUDIT_URL": "amqp://u:s3cr3tword@mq/",
	}
	list := func() (list struct{ Sinks []shownSink }) {
		t.Helper()
		text, code := outcome(t, env, "sinks", "--json")
		if err := json.Unmarshal([]byte(text), &list); err != nil || code != 0 || strings.Contains(text, "s3cr3tword") {
			t.Fatalf("exit code %d, %v:\n%s", code, err, text)
		}
		return list
	}
	want := []shownSink{
		{Name: "kafka", Kind: "kafka", Address: "k:9092"}, {Name: "audit", Kind: "rabbitmq", Address: "amqp://mq/ exchange saga-events"}, {Name: "gone", Entries: 3, Dead: 1}, {Name: "rabbitmq", Entries: 3, Dead: 1},
	}
	if got := list().Sinks; !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	text, code := outcome(t, env, "sinks")
	if code != 0 || !strings.Contains(text, "SINK") || !strings.Contains(text, "not configured") || strings.Contains(text, "s3cr3tword") {
		t.Errorf("exit code %d:\n%s", code, text)
	}
	for args, wantError := range map[string]string{
		"rename rabbitmq":        "want two names",
		"rename rabbitmq A_B":    "want names of 1 to 40",
		"rename pigeon audit":    "nothing was changed: neither the ledger nor",
		"rename rabbitmq gone":   "has entries of sink gone already",
		"renam rabbitmq":         "did you mean rename?",
		"rename saga_outbox new": "is no sink",
	} {
		if text, code := outcome(t, env, append([]string{"sinks"}, strings.Fields(args)...)...); code == 0 || !strings.Contains(text, wantError) {
			t.Errorf("sinks %s: exit code %d:\n%s", args, code, text)
		}
	}
	if text, code := outcome(t, env, "sinks", "rename", "rabbitmq", "audit"); code != 0 || text != "renamed rabbitmq to audit: 3 ledger entries, noted by 1 slots\n" {
		t.Errorf("exit code %d: %s", code, text)
	}
	if text, code := outcome(t, env, "sinks", "rename", "gone", "later", "--json"); code != 0 || !strings.Contains(text, `"entries": 3`) {
		t.Errorf("exit code %d: %s", code, text)
	}
	if got := list().Sinks; got[1].Entries != 3 || got[2].Name != "later" {
		t.Errorf("after it: %+v", got)
	}
}
