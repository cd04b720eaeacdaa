package main

import (
	"context"
	"os"
	"os/exec"
)

// contestant is a program with its settings, on one broker.
type contestant struct {
	name    string
	program string // relay, python, debezium or watermill
	broker  string // kafka or rabbitmq
	does    string // what it does besides publishing, which stands next to its figures
	header  string // that each of its messages has, with the event's id
	slow    bool   // a backlog of it has fewer rows
	maxRate int    // events a second that it is asked for; 0: any

	prepare func(ctx context.Context, t *site) error                // what it reads from, before there are rows
	rows    func(topic, n string, rowBytes int, from string) string // insertSQL of its table, when that is another
	command func(t *site) (*exec.Cmd, error)
	// marked is how many rows it has marked as sent; nil when it marks none.
	marked func(ctx context.Context, t *site) (int, error)
}

// contestants are all, in the order in which they run.
func contestants() []*contestant {
	return []*contestant{
		relayContestant("relay-update", "kafka", 1, "RELAY_MARK=update"),
		relayContestant("relay-delete", "kafka", 1, "RELAY_MARK=delete"),
		relayContestant("relay-2-slots", "kafka", 2, "RELAY_MARK=update"),
		debeziumContestant(),
		watermillContestant(),
		pythonContestant("python-kafka", "kafka"),
		relayContestant("relay-rabbitmq", "rabbitmq", 1, "RELAY_MARK=update"),
		pythonContestant("python-rabbitmq", "rabbitmq"),
	}
}

func contestantNames() (names []string) {
	for _, c := range contestants() {
		names = append(names, c.name)
	}
	return names
}

// environment is what programs need of ours, and nothing that would change their settings.
func environment(settings ...string) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return append(env, settings...)
}
