package main

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options are what to measure.
type options struct {
	relay       string // the program to measure
	forwarder   string // Watermill's
	contestants []string
	measures    []string
	drains      []shape
	rows        int // of a backlog
	slowRows    int // of a backlog of a contestant that takes them one by one
	rabbitRows  int // of a backlog for RabbitMQ
	rates       []int
	rateFor     time.Duration
	killRate    int
	repeat      int
	debezium    []string // further lines of its properties
	python      []string // further variables of the worker
	csv         string
	logs        string // directory for what the contestants print
}

// shape is one kind of backlog.
type shape struct{ perTx, rowBytes int }

var measures = []string{"drain", "latency", "recovery"}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("compare run", flag.ContinueOnError)
	names := f.String("contestants", strings.Join(contestantNames(), ","), "which, comma separated")
	what := f.String("measures", strings.Join(measures, ","), "which, comma separated")
	drains := f.String("drains", "5000:500,1:500,5000:200,5000:4096", "backlogs, as rows a transaction : bytes of a payload")
	rates := f.String("rates", "100,1000,5000", "events a second for the latency")
	f.StringVar(&o.relay, "relay", "bin/sagaz-relay", "the relay's program")
	f.StringVar(&o.forwarder, "forwarder", "bin/watermill-forwarder", "Watermill's forwarder, which is built next to compare")
	f.IntVar(&o.rows, "rows", 100_000, "rows of a backlog; of 4 kB each, a quarter")
	f.IntVar(&o.slowRows, "slow-rows", 3000, "rows of a backlog of the Python worker and of Watermill")
	f.IntVar(&o.rabbitRows, "rabbit-rows", 40_000, "rows of a backlog for RabbitMQ")
	f.DurationVar(&o.rateFor, "rate-for", 4*time.Second, "how long each rate is held")
	f.IntVar(&o.killRate, "kill-rate", 1000, "events a second while a contestant is killed; for those that publish one by one, a fifth")
	f.IntVar(&o.repeat, "repeat", 5, "runs of each measurement")
	f.StringVar(&o.csv, "csv", "docs/benchmarks/results.csv", "file that results are added to")
	f.StringVar(&o.logs, "logs", "bin/compare-logs", "directory for what the contestants print")
	debezium := f.String("debezium", "", "further lines of Debezium's properties, with a ; between them, to try others")
	python := f.String("python", "", "further variables of the Python worker, with a ; between them")
	smoke := f.Bool("smoke", false, "a run in few minutes: little of everything, once")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	semicolon := func(r rune) bool { return r == ';' }
	o.debezium, o.python = strings.FieldsFunc(*debezium, semicolon), strings.FieldsFunc(*python, semicolon)
	if *smoke {
		o.rows, o.slowRows, o.rabbitRows, o.rateFor, o.repeat = 20_000, 500, 5000, 2*time.Second, 1
		*drains, *rates, o.killRate = "5000:500,1:500", "100,1000", 500
	}
	o.contestants, o.measures = strings.Split(*names, ","), strings.Split(*what, ",")
	for _, name := range o.contestants {
		if !slices.Contains(contestantNames(), name) {
			return o, fmt.Errorf("-contestants: no %q, want some of %s", name, strings.Join(contestantNames(), ", "))
		}
	}
	for _, name := range o.measures {
		if !slices.Contains(measures, name) {
			return o, fmt.Errorf("-measures: no %q, want some of %s", name, strings.Join(measures, ", "))
		}
	}
	for _, text := range strings.Split(*drains, ",") {
		tx, size, ok := strings.Cut(text, ":")
		s := shape{}
		var err1, err2 error
		s.perTx, err1 = strconv.Atoi(tx)
		s.rowBytes, err2 = strconv.Atoi(size)
		if !ok || err1 != nil || err2 != nil || s.perTx < 1 || s.rowBytes < 100 {
			return o, fmt.Errorf("-drains=%s: want rows a transaction : bytes (at least 100), such as 5000:500", *drains)
		}
		o.drains = append(o.drains, s)
	}
	for _, text := range strings.Split(*rates, ",") {
		rate, err := strconv.Atoi(text)
		if err != nil || rate < 1 {
			return o, fmt.Errorf("-rates=%s: want events a second, such as 100,1000", *rates)
		}
		o.rates = append(o.rates, rate)
	}
	if o.rows < 1 || o.slowRows < 1 || o.rabbitRows < 1 || o.repeat < 1 || o.killRate < 1 || o.rateFor < time.Second {
		return o, errors.New("want rows, repeats and rates of at least 1, and -rate-for of at least 1s")
	}
	return o, nil
}

// rowsOf is how long a backlog is: all of large rows would be mostly the disk's work.
func (o options) rowsOf(c *contestant, s shape) int {
	rows := o.rows
	switch {
	case c.slow:
		rows = o.slowRows
	case c.broker == "rabbitmq":
		rows = o.rabbitRows
	case s.rowBytes >= 4000:
		rows /= 4
	}
	return rows
}

// killRateOf is the load during which a contestant is killed: one that it carries.
func (o options) killRateOf(c *contestant) int {
	if c.slow {
		return max(o.killRate/5, 1)
	}
	return o.killRate
}
