package main

import (
	"context"
	"os/exec"
)

// pythonContestant is the library's own worker. It polls the table, claims a batch, publishes the
// events of a batch at the same time, and marks each row by a statement of its own.
func pythonContestant(name, broker string) *contestant {
	return &contestant{
		name: name, program: "python", broker: broker, does: "marks rows one by one", header: "event_type", slow: true, maxRate: 1000,
		prepare: func(context.Context, *site) error { return nil },
		command: func(t *site) (*exec.Cmd, error) {
			cmd := exec.Command(t.python, "-m", "sagaz.core.outbox.worker")
			cmd.Dir = t.dir
			cmd.Env = environment("DATABASE_URL="+t.dsn, "BROKER_TYPE="+broker, "WORKER_ID=compare", "LOG_LEVEL=WARNING", "BATCH_SIZE=500", "POLL_INTERVAL=0.1", "PYTHONUNBUFFERED=1")
			if broker == "kafka" {
				cmd.Env = append(cmd.Env, "KAFKA_BOOTSTRAP_SERVERS="+t.kafka.Plaintext)
			} else {
				cmd.Env = append(cmd.Env, "RABBITMQ_URL="+t.rabbit.URL, "RABBITMQ_EXCHANGE="+t.name)
			}
			cmd.Env = append(cmd.Env, t.o.python...)
			return cmd, nil
		},
		marked: func(ctx context.Context, t *site) (n int, err error) {
			err = t.conn.QueryRow(ctx, `SELECT count(*) FROM saga_outbox WHERE status = 'sent'`).Scan(&n)
			return n, err
		},
	}
}
