package bench

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// WriteCSV writes each drain of what has grown as a line.
func (r *Report) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	_ = out.Write([]string{"axis", "value", "round", "rows", "start_seconds", "seconds", "events_per_second", "walsender_us", "marks_us", "relay_us", "peak_rss_bytes"}) // Error has it
	number := func(f float64, digits int) string { return strconv.FormatFloat(f, 'f', digits, 64) }
	for _, g := range r.Grow {
		_ = out.Write([]string{
			g.Axis, strconv.Itoa(g.Value), strconv.Itoa(g.Round), strconv.Itoa(g.Rows), number(g.Start, 3), number(g.Seconds, 3), number(g.PerSecond, 0),
			number(g.Walsender, 2), number(g.Marks, 2), number(g.Relay, 2), strconv.FormatInt(g.PeakRSS, 10),
		})
	}
	out.Flush()
	return out.Error()
}

// printGrowth writes the medians of each point.
func (r *Report) printGrowth(p func(string, ...any)) {
	type point struct {
		axis  string
		value int
	}
	points := make(map[point][]Growth)
	var order []point
	for _, g := range r.Grow {
		at := point{g.Axis, g.Value}
		if points[at] == nil {
			order = append(order, at)
		}
		points[at] = append(points[at], g)
	}
	last := ""
	for _, at := range order {
		if at.axis != last {
			p("")
			p("%-22s %9s %9s   %s", at.axis, "rows", "events/s", "CPU an event: walsender, marks, relay; start; peak memory")
			last = at.axis
		}
		runs := points[at]
		mid := func(of func(Growth) float64) float64 {
			values := make([]float64, 0, len(runs))
			for _, g := range runs {
				values = append(values, of(g))
			}
			slices.Sort(values)
			return values[len(values)/2]
		}
		p("%-22s %9d %9.0f   %.1f, %.1f, %.1f µs; %.2f s; %.0f MB", fmt.Sprint("  ", at.value), runs[0].Rows,
			mid(func(g Growth) float64 { return g.PerSecond }), mid(func(g Growth) float64 { return g.Walsender }), mid(func(g Growth) float64 { return g.Marks }),
			mid(func(g Growth) float64 { return g.Relay }), mid(func(g Growth) float64 { return g.Start }), mid(func(g Growth) float64 { return float64(g.PeakRSS) / 1e6 }))
	}
}
