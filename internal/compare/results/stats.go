package results

import (
	"math"
	"slices"
)

// Spread is what several runs found: the middle one, and the extremes.
type Spread struct {
	Median, Min, Max float64
	Runs             int
}

// SpreadOf is NaN throughout for no values.
func SpreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{Median: math.NaN(), Min: math.NaN(), Max: math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + sorted[middle]) / 2
	}
	return Spread{Median: median, Min: sorted[0], Max: sorted[len(sorted)-1], Runs: len(sorted)}
}

// Table is a set of figures that can be asked for.
type Table struct{ rows []Row }

// Case is one kind of measurement of one contestant. A zero field matches anything.
type Case struct {
	Measure    string
	Contestant string
	PerTx      int
	RowBytes   int
	Rate       int
}

func (c Case) matches(r Row) bool {
	return (c.Measure == "" || c.Measure == r.Measure) && (c.Contestant == "" || c.Contestant == r.Contestant) &&
		(c.PerTx == 0 || c.PerTx == r.PerTx) && (c.RowBytes == 0 || c.RowBytes == r.RowBytes) && (c.Rate == 0 || c.Rate == r.Rate)
}

// Of is the spread of a metric over the runs of a case.
func (t Table) Of(c Case, metric string) Spread {
	var values []float64
	for _, r := range t.rows {
		if c.matches(r) && r.Metric == metric {
			values = append(values, r.Value)
		}
	}
	return SpreadOf(values)
}

// Failures are what runs of a case have failed with.
func (t Table) Failures(c Case) (notes []string) {
	for _, r := range t.rows {
		if c.matches(r) && r.Metric == "failed" {
			notes = append(notes, r.Note)
		}
	}
	return notes
}

// Distinct are the values of a column among a case's rows, in their first order.
func Distinct[V comparable](t Table, c Case, of func(Row) V) (values []V) {
	for _, r := range t.rows {
		if v := of(r); c.matches(r) && !slices.Contains(values, v) {
			values = append(values, v)
		}
	}
	return values
}
