package results

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	vgdraw "gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	width  = 24 * vg.Centimeter
	height = 11 * vg.Centimeter
)

// draw draws what there are figures for, and returns the plots' names.
func draw(t Table, dir string) (drawn []string, err error) {
	for _, d := range []struct {
		name string
		draw func(Table) (*plot.Plot, error)
	}{
		{"drain", drainPlot}, {"cpu", cpuPlot}, {"latency", latencyPlot}, {"recovery", recoveryPlot},
	} {
		p, err := d.draw(t)
		if err != nil {
			return nil, fmt.Errorf("plot %s: %w", d.name, err)
		}
		if p == nil {
			continue
		}
		if err := save(p, filepath.Join(dir, d.name+".svg")); err != nil {
			return nil, fmt.Errorf("plot %s: %w", d.name, err)
		}
		drawn = append(drawn, d.name)
	}
	return drawn, nil
}

// save leaves a margin, which plot.Save does not.
func save(p *plot.Plot, name string) error {
	p.Legend.Padding = vg.Points(3)
	canvas := vgsvg.New(width, height)
	p.Draw(vgdraw.Crop(vgdraw.New(canvas), 2*vg.Millimeter, -6*vg.Millimeter, 2*vg.Millimeter, -3*vg.Millimeter))
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(f)
	return errors.Join(err, f.Close())
}

// series is one row of bars: a value for each contestant.
type series struct {
	label  string
	values []Spread
}

// drainPlot has a bar for each kind of backlog, from the first message on.
func drainPlot(t Table) (*plot.Plot, error) {
	c := Case{Measure: "drain"}
	names := Distinct(t, c, func(r Row) string { return r.Contestant })
	var all []series
	for _, perTx := range Distinct(t, c, func(r Row) int { return r.PerTx }) {
		c := Case{Measure: "drain", PerTx: perTx}
		for _, size := range Distinct(t, c, func(r Row) int { return r.RowBytes }) {
			s := series{label: fmt.Sprintf("%d a transaction, %d B", perTx, size)}
			for _, name := range names {
				s.values = append(s.values, t.Of(Case{"drain", name, perTx, size, 0}, "events_per_second_after_first"))
			}
			all = append(all, s)
		}
	}
	return bars("Drain of a backlog, from the first message on", "events a second", names, all)
}

// cpuPlot has the CPU of each group of processes, for the first kind of backlog.
func cpuPlot(t Table) (*plot.Plot, error) {
	c := Case{Measure: "drain"}
	shapes := Distinct(t, c, func(r Row) [2]int { return [2]int{r.PerTx, r.RowBytes} })
	if len(shapes) == 0 {
		return nil, nil
	}
	c.PerTx, c.RowBytes = shapes[0][0], shapes[0][1]
	names := Distinct(t, c, func(r Row) string { return r.Contestant })
	var all []series
	for _, group := range []string{"contestant", "walsender", "backends", "broker"} {
		s := series{label: group}
		for _, name := range names {
			one := c
			one.Contestant = name
			s.values = append(s.values, t.Of(one, "cpu_"+group))
		}
		all = append(all, s)
	}
	return bars(fmt.Sprintf("CPU of a drain, start included: %d a transaction, %d B", c.PerTx, c.RowBytes), "seconds a million events", names, all)
}

// recoveryPlot has the time after a kill.
func recoveryPlot(t Table) (*plot.Plot, error) {
	names := Distinct(t, Case{Measure: "recovery"}, func(r Row) string { return r.Contestant })
	s := series{label: "to the next message"}
	for _, name := range names {
		s.values = append(s.values, t.Of(Case{Measure: "recovery", Contestant: name}, "recovery_seconds"))
	}
	return bars("After kill -9 and a start at once", "seconds", names, []series{s})
}

// bars draws medians as bars, with the extremes as lines on them; nil when there are none.
func bars(title, unit string, names []string, all []series) (*plot.Plot, error) {
	if len(names) == 0 {
		return nil, nil
	}
	p := plot.New()
	p.Title.Text, p.Y.Label.Text, p.Y.Min = title, unit, 0
	p.Y.Tick.Marker = thousands{}
	p.Legend.Top, p.Legend.Left = true, true
	each := 0.8 / float64(max(len(all), 1)) // of the room that a contestant has
	room := float64(width) * 0.85 / float64(max(len(names), 1))
	any := false
	for i, s := range all {
		values := make(plotter.Values, len(s.values))
		offset := (float64(i) - float64(len(all)-1)/2) * each
		var lines ranges
		for k, v := range s.values {
			if v.Runs == 0 {
				continue
			}
			any, values[k] = true, v.Median
			lines.XYs = append(lines.XYs, plotter.XY{X: float64(k) + offset, Y: v.Median})
			lines.YErrors = append(lines.YErrors, struct{ Low, High float64 }{v.Median - v.Min, v.Max - v.Median})
		}
		b, err := plotter.NewBarChart(values, vg.Length(each*room*0.9))
		if err != nil {
			return nil, err
		}
		b.Color, b.LineStyle.Width, b.XMin = plotutil.Color(i), 0, offset
		p.Add(b)
		if len(lines.XYs) > 0 {
			e, err := plotter.NewYErrorBars(lines)
			if err != nil {
				return nil, err
			}
			p.Add(e)
		}
		p.Legend.Add(s.label, b)
	}
	if !any {
		return nil, nil
	}
	p.X.Tick.Label.Font.Size = vg.Points(9)
	twoLines := make([]string, len(names))
	for i, name := range names {
		twoLines[i] = strings.Replace(name, "-", "\n", 1)
	}
	p.NominalX(twoLines...)
	p.X.Min, p.X.Max = -0.6, float64(len(names))-0.4
	p.Y.Max *= 1.35 // room for the legend
	return p, nil
}

// ranges are points with what they are between.
type ranges struct {
	plotter.XYs
	plotter.YErrors
}

// latencyPlot has a line for each contestant: p99 by rate, both on scales of powers of ten.
func latencyPlot(t Table) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "Commit to consumer: p50 (dashed) and p99", "events a second", "ms"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = powers{}, powers{}
	p.Legend.Top, p.Legend.Left = true, true
	c := Case{Measure: "latency"}
	any := false
	for i, name := range Distinct(t, c, func(r Row) string { return r.Contestant }) {
		for _, metric := range []string{"p99_ms", "p50_ms"} {
			var points plotter.XYs
			for _, rate := range Distinct(t, c, func(r Row) int { return r.Rate }) {
				if v := t.Of(Case{Measure: "latency", Contestant: name, Rate: rate}, metric); rate > 0 && v.Runs > 0 && v.Median > 0 {
					points = append(points, plotter.XY{X: float64(rate), Y: v.Median})
				}
			}
			if len(points) == 0 {
				continue
			}
			any = true
			line, dots, err := plotter.NewLinePoints(points)
			if err != nil {
				return nil, err
			}
			line.Color, dots.Color, dots.Shape = plotutil.Color(i), plotutil.Color(i), plotutil.Shape(i)
			if metric == "p50_ms" {
				line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
			} else {
				p.Legend.Add(name, line, dots)
			}
			p.Add(line, dots)
		}
	}
	if !any {
		return nil, nil
	}
	p.X.Min, p.X.Max = p.X.Min*0.8, p.X.Max*1.25
	p.Y.Min, p.Y.Max = math.Pow(10, math.Floor(math.Log10(p.Y.Min))), math.Pow(10, math.Ceil(math.Log10(p.Y.Max))+0.7)
	return p, nil
}

// thousands are ticks that are written in full.
type thousands struct{}

// Ticks implements plot.Ticker.
func (thousands) Ticks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i, tick := range ticks {
		if tick.Label != "" && tick.Value >= 1000 {
			ticks[i].Label = digits(tick.Value)
		}
	}
	return ticks
}

// powers are ticks at 1, 2 and 5 of each power of ten.
type powers struct{}

// Ticks implements plot.Ticker.
func (powers) Ticks(low, high float64) (ticks []plot.Tick) {
	for power := math.Floor(math.Log10(low)); power <= math.Ceil(math.Log10(high)); power++ {
		for _, step := range []float64{1, 2, 5} {
			if v := step * math.Pow(10, power); v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', -1, 64)})
			}
		}
	}
	return ticks
}
