package store

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// near is how a large batch of marks finds its rows. Rows that were inserted one after the other
// lie side by side in the table, while their ids are spread over the whole index on event_id: to
// go down that index once for each row costs as much as the mark itself. So some of the ids say on
// which pages the batch lies (TID range scan, PostgreSQL 14 and later), and rows there are compared
// with all of its ids. Rows that are elsewhere are looked up by their ids, by the same statement:
// what it marks does not depend on where rows are, only what it costs.
//
// Its owner is whoever has the turn of the marks.
type near struct {
	apart int  // batches that are still looked up by their ids, because rows were not side by side
	pause int  // how many that were the last time
	asked bool // whether the table has partitions is known
	never bool // it has, or its pages must not be asked for
}

const (
	nearLeast    = 256 // rows of a batch, below which pages are not worth a look
	nearSamples  = 16  // ids that say where the batch lies
	nearPauseMax = 128 // batches without a look at pages after those that did not pay
)

// nearSettingsSQL leaves one plan for a look at pages: planned without the values, any range seems to
// be a ninth of the table.
const nearSettingsSQL = `SELECT set_config('enable_nestloop', 'off', true), set_config('enable_mergejoin', 'off', true)`

// onPages replaces the condition of a marking statement. $4 are the samples. The margin is for rows
// that other sessions inserted at the same time, on pages of their own. More pages than rows are
// not looked at: rows that took free space here and there are found faster by their ids.
// Where none of the samples is there, the range is NULL.
const onPages = `ctid >= (SELECT ('(' || min(page) - least(min(page), 16) || ',0)')::tid FROM (` + pages + `) p)
	AND ctid < (SELECT ('(' || min(page) + least(max(page) - min(page) + 17, 3 * cardinality($1::uuid[])) || ',0)')::tid FROM (` + pages + `) p)
	AND event_id IN (SELECT unnest($1::uuid[]))`

const pages = `SELECT (ctid::text::point)[0] AS page FROM saga_outbox WHERE event_id = ANY($4::uuid[])`

// byID is the condition for rows that were not on these pages.
const byID = `event_id = ANY(CASE WHEN (SELECT count(*) FROM there) < cardinality($1::uuid[]) THEN ARRAY(SELECT unnest($1::uuid[]) EXCEPT SELECT event_id FROM there) END)`

var (
	sentNearSQL   = nearby(sentSQL)
	deleteNearSQL = nearby(deleteSQL)
)

// nearby turns a marking statement into one that looks at pages first. It returns how many rows it
// found there, and by their ids.
func nearby(sql string) string {
	with := func(condition string) string {
		return strings.Replace(sql, `event_id = ANY($1::uuid[])`, condition, 1)
	}
	return `WITH there AS (` + with(onPages) + ` RETURNING event_id), others AS (` + with(byID) + ` RETURNING event_id)
		SELECT (SELECT count(*) FROM there), (SELECT count(*) FROM others)`
}

// nearSQL is deliveredSQL by pages, or "" where there is none.
func (s *Store) nearSQL() string {
	switch s.cfg.Mark {
	case MarkDelete:
		return deleteNearSQL
	case MarkArchive:
		return ""
	default:
		return sentNearSQL
	}
}

// pays reports whether a batch of so many rows is to be looked for on pages; least is nearLeast.
func (n *near) pays(rows, least int) bool {
	if n.never || rows < least {
		return false
	}
	if n.apart > 0 {
		n.apart--
		return false
	}
	return true
}

// ask finds out whether the table has partitions, before the first batch that is large enough.
func (n *near) ask(ctx context.Context, conn *pgx.Conn) (err error) {
	if !n.asked {
		err = conn.QueryRow(ctx, `SELECT relkind <> 'r' FROM pg_class WHERE oid = 'saga_outbox'::regclass`).Scan(&n.never)
		n.asked = err == nil
	}
	return err
}

// saw notes how many of a batch's rows were on its pages. One batch tells little of the next, so the
// pause is short at first.
func (n *near) saw(there, rows int) {
	if there >= rows*3/4 {
		n.pause = 0
		return
	}
	n.pause = min(max(1, 2*n.pause), nearPauseMax)
	n.apart = n.pause
}

// nearRefusal reports whether err is the server's, about the statement or its values: then the batch
// is marked by ids. final is where the statement is not possible: rights, or a rule on the table.
// What a trigger says of a row is of that batch.
func nearRefusal(err error) (refused, final bool) {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return false, false
	}
	final = strings.HasPrefix(e.Code, "42") || strings.HasPrefix(e.Code, "0A")
	return final || strings.HasPrefix(e.Code, "22"), final
}

// failed notes that the server has refused to look at pages, final if it always will.
func (n *near) failed(final bool) {
	n.never = n.never || final
	n.saw(0, 1)
}

// samples are some of the ids, from all parts of the batch.
func (u uuids) samples(n int) uuids {
	some := make(uuids, 0, n)
	for i := range n {
		some = append(some, u[i*(len(u)-1)/(n-1)])
	}
	return some
}
