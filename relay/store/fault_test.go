package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
	"github.com/sagaz-relay/relay/relay"
)

// Whose fault an error may be, class by class. What a trigger may raise for one row is in
// unmarked_test.go, on the real server.
func TestBlame(t *testing.T) {
	ended, end := context.WithCancel(t.Context())
	end()
	pg := func(severity, code string) error {
		return fmt.Errorf("mark: %w", &pgconn.PgError{SeverityUnlocalized: severity, Code: code})
	}
	for _, c := range []struct {
		err  error
		want blame
	}{
		{nil, blameNobody},
		{errors.New("broken pipe"), blameNobody},
		{fmt.Errorf("read: %w", context.DeadlineExceeded), blameTransient},
		{pg("FATAL", "57P01"), blameNobody},
		{pg("FATAL", "23514"), blameNobody},
		{pg("PANIC", "XX000"), blameNobody},
		{pg("ERROR", "08006"), blameTransient},
		{pg("ERROR", "25006"), blameTransient},
		{pg("ERROR", "40001"), blameTransient},
		{pg("ERROR", "40P01"), blameTransient},
		{pg("ERROR", "53100"), blameTransient},
		{pg("ERROR", "55P03"), blameTransient},
		{pg("ERROR", "57014"), blameTransient},
		{pg("ERROR", "58030"), blameTransient},
		{pg("ERROR", "21000"), blameRow},
		{pg("ERROR", "22P02"), blameRow},
		{pg("ERROR", "23514"), blameRow},
		// The probe distinguishes the table's fault from the row's.
		{pg("ERROR", "42501"), blameRow},
		{pg("ERROR", "54000"), blameRow},
		{pg("ERROR", "P0001"), blameRow},
		{pg("ERROR", "T0001"), blameRow},
		{pg("ERROR", "XX001"), blameRow},
		{pg("", "23514"), blameRow}, // a pooler may leave it out
		{pg("ERROR", ""), blameNobody},
	} {
		if got := blames(t.Context(), c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
		if got := blames(ended, c.err); got != blameNobody {
			t.Errorf("%v, when we are being stopped: %d", c.err, got)
		}
	}
}

// Nothing that is in a row is logged of an error.
func TestCauseHasNoValues(t *testing.T) {
	const secret = "Zoë, 42 years"
	c := causeOf(&pgconn.PgError{
		Code: "P0001", Message: secret, Detail: "Failing row contains (" + secret + ")", Hint: secret, InternalQuery: secret,
		Where:          "PL/pgSQL function public.check_it(text) line 3 at RAISE\nSQL statement \"INSERT INTO t VALUES ('" + secret + "')\"",
		ConstraintName: "t", TableName: "saga_outbox", ColumnName: "tenant",
	})
	if want := "SQLSTATE P0001: constraint t, column tenant, table saga_outbox, in function public.check_it(text)"; c.text != want || !c.raised {
		t.Errorf("%+v, want %q", c, want)
	}
	if strings.Contains(fmt.Sprint(c), "Zoë") {
		t.Error("it holds the row's value")
	}
}

// A trigger's message may hold anything, with a code for which the batch is tried again as it is
// and the error logged.
func TestErrorsOfMarksHaveNoValues(t *testing.T) {
	db := pgtest.New(t, pgtest.Migrated())
	const secret = "Zoë, 42 years"
	exec(t, db, `CREATE FUNCTION check_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not for %', NEW.payload USING ERRCODE = TG_ARGV[0]; END $$`)
	l := acquire(t, newStore(t, testConfig(db), nil), "outbox")
	events := insert(t, db, 1, 3)
	exec(t, db, `UPDATE saga_outbox SET payload = to_jsonb('`+secret+`'::text)`)
	for _, code := range []string{"40001", "53200", "57014", "25006"} {
		exec(t, db, `CREATE OR REPLACE TRIGGER check_it BEFORE UPDATE ON saga_outbox FOR EACH ROW EXECUTE FUNCTION check_it('`+code+`')`)
		_, err := l.Mark(t.Context(), relay.MarkBatch{Marks: marksOf(events)})
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != code {
			t.Fatalf("%s: %v", code, err)
		}
		if text := err.Error(); strings.Contains(text, "Zoë") || !strings.Contains(text, code) || !strings.Contains(text, "check_it()") {
			t.Errorf("%s: %s", code, text)
		}
	}
	for pg, kept := range map[*pgconn.PgError]bool{
		{Code: "22P02", Message: "invalid input syntax for type integer: " + secret}:                                   false,
		{Code: "P0001", Message: secret}:                                                                               false,
		{Code: "40P01", Message: "deadlock detected", Where: "while updating tuple (0,1) in relation \"saga_outbox\""}: true,
		{Code: "42703", Message: "column \"heir\" does not exist"}:                                                     true,
		{Code: "55P03", Message: secret, Where: "fonction PL/pgSQL public.check_it(), ligne 3, à RAISE"}:               false,
	} {
		if got := strings.Contains(withoutValues(fmt.Errorf("mark: %w", pg)).Error(), pg.Message); got != kept {
			t.Errorf("%s: %v: kept %t, want %t", pg.Code, pg, got, kept)
		}
	}
}

// Rows that cannot be read are read one by one; a statement that cannot be run is not.
func TestUnreadable(t *testing.T) {
	for code, want := range map[string]bool{"22021": true, "54000": true, "XX001": true, "53200": true, "P0001": true, "42703": false, "42501": false, "57014": false, "08006": false} {
		if got := isUnreadable(&pgconn.PgError{Code: code}); got != want {
			t.Errorf("%s: %t, want %t", code, got, want)
		}
	}
	if !isUnreadable(&pgconn.PgError{Code: "42883", Where: "PL/pgSQL function public.policy() line 1 at RETURN"}) {
		t.Error("what a policy's function raises is not taken for the row's fault")
	}
}

// The bound of the work: n at fault among m cost about 2 n log m writes, and all of them at most a
// few more than a hundred.
func TestHalvingIsBounded(t *testing.T) {
	refused := errors.New("refused")
	for _, c := range []struct {
		name        string
		at          func(i int) bool
		most, given int
		whole       bool // all at fault are found alone
	}{
		{"none", func(int) bool { return false }, 1, 0, true},
		{"the first", func(i int) bool { return i == 0 }, 30, 1, true},
		{"the last", func(i int) bool { return i == 2499 }, 30, 1, true},
		{"one in 500", func(i int) bool { return i%500 == 3 }, 130, 5, true},
		{"one in 25", func(i int) bool { return i%25 == 3 }, halvingWrites, 100, true},
		{"all", func(int) bool { return true }, 200, 2500, false},
		{"the first half", func(i int) bool { return i < 1250 }, 400, 1250, false},
	} {
		writes, given := 0, 0
		h := halving{
			left: halvingWrites, until: time.Now().Add(time.Hour), fault: func(err error) bool { return errors.Is(err, refused) },
			write: func(lo, hi int) error {
				writes++
				for i := lo; i < hi; i++ {
					if c.at(i) {
						return refused
					}
				}
				return nil
			},
			refused: func(lo, hi int, _ error) error {
				given += hi - lo
				if hi-lo > 1 && c.whole {
					t.Errorf("%s: [%d, %d) were given together", c.name, lo, hi)
				}
				return nil
			},
		}
		if err := h.run(0, 2500); err != nil || writes > c.most || given < c.given || c.whole && given != c.given {
			t.Errorf("%s: %d writes, %d given, %v; want at most %d, and %d", c.name, writes, given, err, c.most, c.given)
		}
	}
}
