// Package results keeps what was measured: a line of CSV for each figure, the statistics of
// several runs, plots and tables.
package results

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Row is one figure of one run.
type Row struct {
	At         time.Time // when the run ended
	Run        int       // from 1 on
	Measure    string    // drain, latency, recovery; machine and contestant for notes
	Contestant string
	PerTx      int // rows a transaction
	RowBytes   int
	Rate       int // events a second that were committed; 0 for a backlog
	Rows       int
	Metric     string
	Value      float64
	Note       string // words: why it failed, what a machine is, what a contestant does
}

var columns = []string{"at", "run", "measure", "contestant", "rows_per_transaction", "row_bytes", "rate", "rows", "metric", "value", "note"}

func (r Row) record() []string {
	return []string{
		r.At.UTC().Format(time.RFC3339), strconv.Itoa(r.Run), r.Measure, r.Contestant, strconv.Itoa(r.PerTx), strconv.Itoa(r.RowBytes),
		strconv.Itoa(r.Rate), strconv.Itoa(r.Rows), r.Metric, strconv.FormatFloat(r.Value, 'g', 8, 64), r.Note,
	}
}

// Append adds rows to a file, which is made if need be. They are on the disk when it returns: a run
// that is interrupted keeps what came before.
func Append(path string, rows []Row) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create directory for results: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("open results: %w", err)
	}
	w := csv.NewWriter(f)
	if info, err := f.Stat(); err == nil && info.Size() == 0 {
		_ = w.Write(columns) // Flush has the error
	}
	for _, r := range rows {
		_ = w.Write(r.record())
	}
	w.Flush()
	if err := errors.Join(w.Error(), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// Read reads a file of Append. A last line that was cut off is left out.
func Read(path string) ([]Row, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	r := csv.NewReader(f)
	head, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !slices.Equal(head, columns) {
		return nil, fmt.Errorf("%s: has the columns %v, want %v", path, head, columns)
	}
	var rows []Row
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) || errors.Is(err, csv.ErrFieldCount) {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		row, err := parse(record)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, len(rows)+2, err)
		}
		rows = append(rows, row)
	}
}

func parse(record []string) (r Row, err error) {
	number := func(text string) int {
		n, e := strconv.Atoi(text)
		err = errors.Join(err, e)
		return n
	}
	r = Row{
		Run: number(record[1]), Measure: record[2], Contestant: record[3], PerTx: number(record[4]), RowBytes: number(record[5]),
		Rate: number(record[6]), Rows: number(record[7]), Metric: record[8], Note: record[10],
	}
	at, e := time.Parse(time.RFC3339, record[0])
	value, e2 := strconv.ParseFloat(record[9], 64)
	r.At, r.Value = at, value
	return r, errors.Join(err, e, e2)
}
