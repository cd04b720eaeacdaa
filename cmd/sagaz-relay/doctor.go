package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/doctor"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/store"
)

func newDoctor(load func() (*settings, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check database, rights, slots, table and brokers, and print how to fix what is wrong",
		Long: `doctor looks at everything that "sagaz-relay run" needs with the same settings, and at the state
of its work. It prints for each thing what is wrong, why it matters, and the statement or setting
that fixes it, all at once. It changes nothing, and may be run at any time.

  ok        all is well
  note      it works; it could be better, or should be known
  unknown   it could not be found out; that alone does not change the exit code
  degraded  the relay works, but not as it should, or not for long
  broken    the relay cannot work, or not deliver

Exit codes:
  0  nothing is degraded or broken
  1  something is degraded
  2  something is broken`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			var problems []error
			if err := s.all(); err != nil {
				problems = allErrors(err)
			}
			log := hclog.NewNullLogger() // what sinks would log of their errors is in the report
			sinks, more := s.sinksThatOpen(log)
			defer closeSinks(sinks, log)
			report := doctor.Examine(cmd.Context(), s.examined(sinks), append(problems, more...))
			if asJSON {
				err = term.WriteJSON(cmd.OutOrStdout(), report)
			} else {
				err = report.Print(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			return worst(report)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// worst is the error whose exit code shows how bad it is.
func worst(r *doctor.Report) error {
	switch r.Worst() {
	case doctor.Broken:
		return configError{fmt.Errorf("doctor: %d broken, %d degraded", r.Counts[doctor.Broken], r.Counts[doctor.Degraded])}
	case doctor.Degraded:
		return fmt.Errorf("doctor: %d degraded", r.Counts[doctor.Degraded])
	default:
		return nil
	}
}

// allErrors takes errors.Join apart, at every depth.
func allErrors(err error) []error {
	if config := (configError{}); errors.As(err, &config) {
		err = config.error
	}
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // only what is joined here
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, allErrors(e)...)
	}
	return all
}

// sinksThatOpen makes those sinks that can be made, and returns of the others what
// settings.all does not report.
func (s *settings) sinksThatOpen(log hclog.Logger) (sinks []relay.Sink, problems []error) {
	for _, name := range s.used() {
		if s.kindOf(name) == nil || s.validateSink(name) != nil {
			continue
		}
		sink, err := s.openSink(name, log)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		sinks = append(sinks, sink)
	}
	return sinks, problems
}

// examined is what the doctor needs to know of the settings.
func (s *settings) examined(sinks []relay.Sink) doctor.Config {
	encoder, err := encode.New(s.encode)
	if err != nil { // reported by settings.all
		encoder = &encode.Encoder{}
	}
	var routers map[string]relay.Router
	if table, err := s.routes(); err == nil { // reported by settings.all
		routers = table.Routers()
	}
	return doctor.Config{
		DatabaseURL: s.cdc.DatabaseURL, Mode: s.relay.Mode, Set: s.set(), Failover: s.cdc.Failover,
		WALSenderTimeout: s.cdc.WALSenderTimeout, WALBudget: s.relay.WALBudget, Mark: s.store.Mark,
		Retention:    s.relay.Retention > 0,
		Archive:      s.store.Mark == store.MarkArchive || s.relay.Retention > 0 && s.relay.RetentionAction == relay.RetentionArchive,
		ClaimTimeout: s.store.ClaimTimeout, LeaseTTL: s.store.LeaseTTL,
		SinkNames: s.used(), BrokerTypes: sinkNames(), SinkKinds: s.kindNames(), Sinks: sinks, Encoder: encoder, Routers: routers, ByDefault: s.relay.SinksByDefault,
		RetainedTooMuch: doctor.DefaultRetainedTooMuch, PendingTooLong: doctor.DefaultPendingTooLong, Now: time.Now,
	}
}
