package chaos

import (
	"context"
	"errors"
	"sync"
	"time"
)

// databaseFaults happen to PostgreSQL and to the relays' connections there.
func databaseFaults() []*fault {
	ended := func(name, like string, repeats string) *fault {
		return &fault{name: name, weight: 2, most: time.Millisecond, repeats: repeats, do: func(r *round, s step) error {
			return r.sql(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE $1`, like)
		}}
	}
	return []*fault{
		{name: "pg-fast", weight: 2, most: 3 * time.Second, repeats: allSinks, do: func(r *round, s step) error { return r.stopPostgres(s, r.testbed.pg.Stop) }},
		{name: "pg-immediate", weight: 2, most: 3 * time.Second, repeats: allSinks, do: func(r *round, s step) error { return r.stopPostgres(s, r.testbed.pg.StopImmediate) }},
		{name: "pg-kill", weight: 2, most: time.Second, repeats: allSinks, do: func(r *round, s step) error {
			return r.stopPostgres(s, func(context.Context) error { return r.testbed.pg.Kill() })
		}},
		// The walsender's end repeats nothing: the pipeline lives on, and knows what it has.
		ended("end-walsender", "sagaz-relay slot %", ""),
		ended("end-lease", "sagaz-relay%lease%", allSinks),
		ended("end-marks", "sagaz-relay%marks%", allSinks),
		ended("end-all", "sagaz-relay%", allSinks),
	}
}

// stopPostgres stops the server in a way, and starts it again after a while.
func (r *round) stopPostgres(s step, stop func(context.Context) error) error {
	r.testbed.pgMu.Lock()
	defer r.testbed.pgMu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// A walsender whose client is frozen or cut off holds a clean stop up; the server is killed
	// then, which is as good.
	stopping, enough := context.WithTimeout(ctx, 5*time.Second)
	err := stop(stopping)
	enough()
	if errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	time.Sleep(s.hold)
	return errors.Join(err, r.testbed.pg.Start(ctx))
}

// linkFaults happen to the network, between one relay and PostgreSQL or between all relays and a
// broker.
func linkFaults() []*fault {
	var all []*fault
	for _, state := range []linkState{linkSlow, linkSilent, linkDeaf, linkCut} {
		for _, server := range []string{"pg", "kafka", "rabbitmq"} {
			f := &fault{
				name: server + "-" + string(state), weight: 2, least: 500 * time.Millisecond, most: 7 * time.Second,
				brokers: server != "pg", seat: server == "pg", repeats: server,
			}
			switch {
			case state == linkSlow: // slower than it should be, and faster than any limit
				f.repeats = ""
			case server == "pg": // the lease is lost then
				f.repeats = allSinks
			}
			f.do = func(r *round, s step) error {
				l := map[string]*link{"kafka": r.testbed.toKafka, "rabbitmq": r.testbed.toRabbit}[server]
				if server == "pg" {
					l = r.testbed.toPG[r.seatOf(s).index]
				}
				l.fault.Lock()
				defer l.fault.Unlock()
				delay := time.Duration(0)
				if state == linkSlow {
					delay = time.Duration(1+s.pick%50) * time.Millisecond
				}
				l.set(state, delay)
				time.Sleep(s.hold)
				l.heal(s.pick%2 == 0)
				return nil
			}
			if state == linkSlow {
				heal := f.do
				f.do = func(r *round, s step) error {
					s.pick |= 1 // what is slow forgets nothing
					return heal(r, s)
				}
			}
			all = append(all, f)
		}
	}
	return all
}

// brokerFaults happen to the brokers.
func brokerFaults() []*fault {
	kind := func(name, sink string, do func(*round, step) error) *fault {
		return &fault{name: name, weight: 2, most: 5 * time.Second, brokers: true, once: true, repeats: sink, do: do}
	}
	return []*fault{
		kind("kafka-stop", "kafka", func(r *round, s step) error {
			return restart(&r.testbed.kafkaMu, s, r.testbed.kafka.Stop, r.testbed.kafka.Start)
		}),
		kind("kafka-kill", "kafka", func(r *round, s step) error {
			return restart(&r.testbed.kafkaMu, s, func(context.Context) error { return r.testbed.kafka.Kill() }, r.testbed.kafka.Start)
		}),
		kind("rabbitmq-stop", "rabbitmq", func(r *round, s step) error {
			return restart(&r.testbed.rabbitMu, s, r.testbed.rabbit.Stop, r.testbed.rabbit.Start)
		}),
		kind("rabbitmq-kill", "rabbitmq", func(r *round, s step) error {
			return restart(&r.testbed.rabbitMu, s, func(context.Context) error { return r.testbed.rabbit.Kill() }, r.testbed.rabbit.Start)
		}),
	}
}

func restart(mu *sync.Mutex, s step, stop, start func(context.Context) error) error {
	mu.Lock()
	defer mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	err := stop(ctx)
	time.Sleep(s.hold)
	return errors.Join(err, start(ctx))
}
