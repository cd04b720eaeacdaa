package bench

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseAxes(t *testing.T) {
	for _, tt := range []struct {
		texts []string
		want  []Axis
		err   string
	}{
		{nil, nil, ""},
		{[]string{"keys=1, 1000", "lanes=64"}, []Axis{{"keys", []int{1, 1000}}, {"lanes", []int{64}}}, ""},
		{[]string{"ledger"}, []Axis{{"ledger", []int{0, 10}}}, ""},
		{[]string{"rows=1"}, nil, "want all, or one of"},
		{[]string{"all=1"}, nil, "want all, or one of"},
		{[]string{"keys=0"}, nil, "want numbers from 1"},
		{[]string{"ledger=101"}, nil, "to 100"},
		{[]string{"sent=many"}, nil, "want numbers from 0"},
	} {
		got, err := ParseAxes(tt.texts)
		if tt.err == "" && (err != nil || !reflect.DeepEqual(got, tt.want)) {
			t.Errorf("%q: got %v, %v, want %v", tt.texts, got, err, tt.want)
		}
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%q: got %v, want an error with %q", tt.texts, err, tt.err)
		}
	}
	all, err := ParseAxes([]string{"all"})
	if err != nil || len(all) != len(Growable()) {
		t.Errorf("all: %v, %v", all, err)
	}
	// What may grow is a part of the middle point.
	for _, axis := range all {
		for _, value := range axis.Values {
			if o := (Options{Rows: 7}); o.middle().at(axis.Name, value) == o.middle().at(axis.Name, value+1) {
				t.Errorf("%s does not grow", axis.Name)
			}
		}
	}
}

func TestWriteGrowth(t *testing.T) {
	r := Report{}
	for i, rate := range []float64{300, 100, 200} {
		r.Grow = append(r.Grow, Growth{Axis: "keys", Value: 1, Round: i + 1, Steady: Steady{Rows: 50, Start: 0.25, Seconds: 1.5, PerSecond: rate, Walsender: 5, Marks: 6, Relay: 7, PeakRSS: 80e6}})
	}
	var out strings.Builder
	if err := r.WriteCSV(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 || lines[0] != "axis,value,round,rows,start_seconds,seconds,events_per_second,walsender_us,marks_us,relay_us,peak_rss_bytes" || lines[1] != "keys,1,1,50,0.250,1.500,300,5.00,6.00,7.00,80000000" {
		t.Errorf("CSV:\n%s", out.String())
	}
	out.Reset()
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "200   5.0, 6.0, 7.0 µs; 0.25 s; 80 MB") {
		t.Errorf("printed without the median:\n%s", text)
	}
}
