package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sagaz-relay/relay/relay"
)

const (
	brokerTimeout = 10 * time.Second
	// sampleRows are the newest rows whose destinations are looked at, and sampleRoutes the most
	// destinations.
	sampleRows   = 10_000
	sampleRoutes = 500
)

func (ex *exam) checkSink(ctx context.Context, sink relay.Sink) {
	check := "sink " + sink.Name()
	checker, ok := sink.(relay.Checker)
	if !ok {
		ex.ok(check, "nothing to reach")
		return
	}
	sofar := len(ex.report.Findings)
	if routes, ok := sink.(relay.RouteChecker); ok {
		ex.checkRoutes(ctx, sink.Name(), routes)
	}
	routes := slices.Clone(ex.report.Findings[sofar:])
	ex.report.Findings = ex.report.Findings[:sofar]

	reaching, cancel := context.WithTimeout(ctx, brokerTimeout)
	err := checker.Check(reaching)
	cancel()
	if err == nil {
		if kind := ex.cfg.SinkKinds[sink.Name()]; kind != "" {
			ex.ok(check, "reachable (%s)", kind)
		} else {
			ex.ok(check, "reachable")
		}
		ex.report.Findings = append(ex.report.Findings, routes...)
		return
	}
	f := Finding{
		Check: check, Severity: Broken, Summary: err.Error(), Why: "No event is delivered to it.",
		Fix: []Step{do("check address and credentials, that the broker runs, and that no firewall or network policy is in between")},
	}
	if setup := (*relay.SetupError)(nil); errors.As(err, &setup) && setup.Fix != "" {
		f.Fix = []Step{do("%s", setup.Fix)}
	}
	ex.add(f)
}

// checkRoutes asks a sink whether the events of the last day would arrive if they were sent now.
func (ex *exam) checkRoutes(ctx context.Context, name string, sink relay.RouteChecker) {
	check := "routes " + name
	if ex.conn == nil || ex.table == 0 {
		ex.add(Finding{Check: check, Severity: Unknown, Summary: "not looked at: the events' types are not known without the table"})
		return
	}
	sample, err := ex.sample(ctx, name)
	if err != nil {
		ex.unknown(check, err)
		return
	}
	routes := sample.routes
	if len(routes) == 0 {
		ex.ok(check, "no event within a day, so no destination to look at")
		return
	}
	asking, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	problems, err := sink.CheckRoutes(asking, routes)
	ex.report.Findings = append(ex.report.Findings, grouped(check, problems)...)
	switch {
	case err != nil: // of some routes, or of some of what can be wrong with them, it can be known
		ex.unknown(check, err)
	case len(problems) == 0:
		ex.ok(check, "%s of the last day's events: all there", count(int64(len(routes)), "destination"))
	}
}

// shownTypes is how many event types and fixes a finding about many destinations names.
const shownTypes = 5

// grouped makes one finding of destinations with the same problem.
func grouped(check string, problems []relay.RouteProblem) []Finding {
	types := make(map[string][]string) // by problem
	steps := make(map[string][]Step)
	notes := make(map[string]string)
	var order []string
	for _, p := range problems {
		if types[p.Problem] == nil {
			order = append(order, p.Problem)
			notes[p.Problem] = p.Note
		}
		if !slices.Contains(types[p.Problem], p.Route.EventType) {
			types[p.Problem] = append(types[p.Problem], p.Route.EventType)
		}
		step := do("%s", p.Fix)
		// Not wrapped: a quoted word may have spaces.
		if strings.HasPrefix(p.Fix, "rabbitmqadmin ") {
			step = run("%s", p.Fix)
		}
		if p.Fix != "" && !slices.Contains(steps[p.Problem], step) {
			steps[p.Problem] = append(steps[p.Problem], step)
		}
	}
	var findings []Finding
	for _, problem := range order {
		names, fix := types[problem], steps[problem]
		whose := strings.Join(names[:min(shownTypes, len(names))], ", ")
		if more := len(names) - shownTypes; more > 0 {
			whose += fmt.Sprintf(" and %d more", more)
		}
		if more := len(fix) - shownTypes; more > 0 {
			fix = append(fix[:shownTypes:shownTypes], do("and so on for %d more", more))
		}
		f := Finding{Check: check, Severity: Degraded, Summary: whose + ": " + problem, Why: "Events of this type are refused, and become dead letters.", Fix: fix}
		if notes[problem] != "" {
			f.Severity, f.Why = Note, notes[problem]
		}
		findings = append(findings, f)
	}
	return findings
}
