package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debeziumPublication is of all columns and all operations, as the connector itself makes one for a
// table (publication.autocreate.mode=filtered).
const debeziumPublication = "compare_debezium"

// debeziumContestant is Debezium Server with its outbox event router, on the same table. What is
// set and not its default, is named with its source in docs/benchmarks.md.
func debeziumContestant() *contestant {
	return &contestant{
		name: "debezium", program: "debezium", broker: "kafka", does: "marks nothing", header: "id",
		prepare: func(ctx context.Context, t *site) error {
			if err := t.exec(ctx, `CREATE PUBLICATION `+debeziumPublication+` FOR TABLE saga_outbox`); err != nil {
				return err
			}
			return t.makeSlot(ctx, t.name)
		},
		command: func(t *site) (*exec.Cmd, error) {
			config := filepath.Join(t.dir, "config")
			if err := os.MkdirAll(config, 0o755); err != nil {
				return nil, err
			}
			if err := os.WriteFile(filepath.Join(config, "application.properties"), []byte(t.debeziumProperties()), 0o644); err != nil {
				return nil, fmt.Errorf("write Debezium's properties: %w", err)
			}
			runner, err := filepath.Glob(filepath.Join(t.debezium.Dir, "debezium-server-*runner.jar"))
			if err != nil || len(runner) != 1 {
				return nil, fmt.Errorf("in %s are the runners %v of Debezium Server, want one", t.debezium.Dir, runner)
			}
			// What its run.sh does without JMX and exporter.
			path := strings.Join([]string{runner[0], filepath.Join(t.debezium.Dir, "config", "lib"), filepath.Join(t.debezium.Dir, "lib", "*")}, ":")
			cmd := exec.Command(t.debezium.Java, "-cp", path, "io.debezium.server.Main")
			cmd.Dir, cmd.Env = t.dir, environment()
			return cmd, nil
		},
	}
}

// debeziumProperties has no reference to a variable: Quarkus would expand it.
func (t *site) debeziumProperties() string {
	cfg := t.conn.Config()
	lines := []string{
		"debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector",
		"debezium.source.database.hostname=" + cfg.Host,
		fmt.Sprintf("debezium.source.database.port=%d", cfg.Port),
		"debezium.source.database.user=" + cfg.User,
		"debezium.source.database.password=" + cfg.Password,
		"debezium.source.database.dbname=" + t.name,
		"debezium.source.topic.prefix=compare",
		"debezium.source.table.include.list=public.saga_outbox",
		"debezium.source.plugin.name=pgoutput",
		"debezium.source.slot.name=" + t.name,
		"debezium.source.publication.name=" + debeziumPublication,
		"debezium.source.publication.autocreate.mode=disabled",
		"debezium.source.snapshot.mode=no_data",
		"debezium.source.tombstones.on.delete=false",
		"debezium.source.offset.storage.file.filename=" + filepath.Join(t.dir, "offsets.dat"),
		"debezium.source.offset.flush.interval.ms=0",
		"debezium.source.max.batch.size=8192",
		"debezium.source.max.queue.size=32768",
		"debezium.source.poll.interval.ms=10",
		"debezium.transforms=outbox",
		"debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter",
		"debezium.transforms.outbox.table.field.event.id=event_id",
		"debezium.transforms.outbox.table.field.event.key=aggregate_id",
		"debezium.transforms.outbox.table.field.event.payload=payload",
		"debezium.transforms.outbox.route.by.field=event_type",
		"debezium.transforms.outbox.route.topic.replacement=" + t.name,
		"debezium.format.key=simplestring",
		"debezium.format.value=simplestring",
		"debezium.sink.type=kafka",
		"debezium.sink.kafka.producer.bootstrap.servers=" + t.kafka.Plaintext,
		"debezium.sink.kafka.producer.key.serializer=org.apache.kafka.common.serialization.StringSerializer",
		"debezium.sink.kafka.producer.value.serializer=org.apache.kafka.common.serialization.StringSerializer",
		"debezium.sink.kafka.producer.acks=all",
		"debezium.sink.kafka.producer.batch.size=131072",
		"debezium.sink.kafka.producer.linger.ms=5",
		fmt.Sprintf("quarkus.http.port=%d", t.port),
		"quarkus.http.host=127.0.0.1",
		"quarkus.log.level=WARN",
		"quarkus.log.console.json=false",
	}
	return strings.Join(append(lines, t.o.debezium...), "\n") + "\n"
}
