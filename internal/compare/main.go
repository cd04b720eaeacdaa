package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sagaz-relay/relay/internal/compare/results"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("want a subcommand: run, report or growth")
	}
	switch args[0] {
	case "run":
		o, err := parse(args[1:])
		if err != nil {
			return err
		}
		return run(ctx, o)
	case "report":
		flags := flag.NewFlagSet("compare report", flag.ContinueOnError)
		csv := flags.String("csv", "docs/benchmarks/results.csv", "what run has written")
		plots := flags.String("plots", "docs/benchmarks", "directory for the plots")
		doc := flags.String("doc", "docs/benchmarks.md", "document whose tables are replaced")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return results.Report(*csv, *plots, *doc)
	case "growth":
		flags := flag.NewFlagSet("compare growth", flag.ContinueOnError)
		csv := flags.String("csv", "docs/measurements/growth.csv", "what sagaz-relay bench --grow --csv has written")
		svg := flags.String("svg", "docs/measurements/growth.svg", "the plot")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return results.Growth(*csv, *svg)
	}
	return fmt.Errorf("no subcommand %q: want run, report or growth", args[0])
}
