package results

import (
	"encoding/csv"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	vgdraw "gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// growthColumns are those of sagaz-relay bench --grow --csv.
var growthColumns = []string{"axis", "value", "round", "rows", "start_seconds", "seconds", "events_per_second", "walsender_us", "marks_us", "relay_us", "peak_rss_bytes"}

// drainAt is one drain at a value of an axis.
type drainAt struct {
	axis  string
	value int
	cost  [3]float64 // CPU of an event, in the order of growthCosts
}

var growthCosts = [3]string{"walsender", "marks", "relay"}

// Growth draws what bench --grow has written as CSV: a plot for each axis, with the medians of the
// CPU that an event costs, and the extremes of several rounds.
func Growth(from, to string) error {
	drains, err := readGrowth(from)
	if err != nil {
		return err
	}
	var names []string
	for _, d := range drains {
		if !slices.Contains(names, d.axis) {
			names = append(names, d.axis)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("%s: has no drains", from)
	}
	const columns = 3
	rows := (len(names) + columns - 1) / columns
	top := 0.0
	for _, d := range drains {
		top = max(top, slices.Max(d.cost[:]))
	}
	plots := make([][]*plot.Plot, rows)
	for i := range plots {
		plots[i] = make([]*plot.Plot, columns)
	}
	for i, name := range names {
		p, err := growthPlot(name, drains)
		if err != nil {
			return fmt.Errorf("plot %s: %w", name, err)
		}
		p.Y.Min, p.Y.Max = 0, math.Ceil(top*1.5) // the same for all, so that they compare; with room for the legend
		p.Legend.Top, p.Legend.Left = true, true
		plots[i/columns][i%columns] = p
	}
	canvas := vgsvg.New(width, vg.Length(rows)*7*vg.Centimeter)
	tiles := vgdraw.Tiles{Rows: rows, Cols: columns, PadX: vg.Millimeter * 4, PadY: vg.Millimeter * 4, PadTop: vg.Millimeter * 2, PadBottom: vg.Millimeter * 2, PadLeft: vg.Millimeter * 2, PadRight: vg.Millimeter * 4}
	for i, row := range plot.Align(plots, tiles, vgdraw.New(canvas)) {
		for j, tile := range row {
			if plots[i][j] != nil {
				plots[i][j].Draw(tile)
			}
		}
	}
	f, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("create plot: %w", err)
	}
	defer f.Close() //nolint:errcheck // Sync has the error
	if _, err := canvas.WriteTo(f); err != nil {
		return fmt.Errorf("write plot: %w", err)
	}
	return f.Sync()
}

// growthPlot is the plot of one axis.
func growthPlot(axis string, drains []drainAt) (*plot.Plot, error) {
	values := make(map[int][]drainAt)
	var order []int
	for _, d := range drains {
		if d.axis == axis {
			values[d.value] = append(values[d.value], d)
		}
	}
	for value := range values {
		order = append(order, value)
	}
	slices.Sort(order)
	p := plot.New()
	p.Title.Text, p.Y.Label.Text = axis, "µs of CPU an event"
	labels := make([]string, len(order))
	for i, value := range order {
		if labels[i] = strconv.Itoa(value); value >= 1000 {
			labels[i] = digits(float64(value))
		}
	}
	for cost, name := range growthCosts {
		var points ranges
		for i, value := range order {
			var all []float64
			for _, d := range values[value] {
				all = append(all, d.cost[cost])
			}
			slices.Sort(all)
			mid := all[len(all)/2]
			points.XYs = append(points.XYs, plotter.XY{X: float64(i), Y: mid})
			points.YErrors = append(points.YErrors, struct{ Low, High float64 }{mid - all[0], all[len(all)-1] - mid})
		}
		line, dots, err := plotter.NewLinePoints(points.XYs)
		if err != nil {
			return nil, err
		}
		bars, err := plotter.NewYErrorBars(points)
		if err != nil {
			return nil, err
		}
		line.Color, dots.Color, dots.Shape, bars.Color = plotutil.Color(cost), plotutil.Color(cost), plotutil.Shape(cost), plotutil.Color(cost)
		p.Add(line, dots, bars)
		p.Legend.Add(name, line, dots)
	}
	p.NominalX(labels...)
	p.X.Min, p.X.Max = -0.3, float64(len(order))-0.7
	return p, nil
}

// readGrowth reads what bench has written.
func readGrowth(path string) ([]drainAt, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	records, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(records) == 0 || !slices.Equal(records[0], growthColumns) {
		return nil, fmt.Errorf("%s: want the columns %v", path, growthColumns)
	}
	var drains []drainAt
	for i, r := range records[1:] {
		d := drainAt{axis: r[0]}
		d.value, err = strconv.Atoi(r[1])
		for c := range d.cost {
			if err == nil {
				d.cost[c], err = strconv.ParseFloat(r[7+c], 64)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, i+2, err)
		}
		drains = append(drains, d)
	}
	return drains, nil
}
