package orders

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
)

// event is an event as a writer made it: a row of saga_outbox, and its place in its key's commit
// order.
type event struct {
	id      relay.UUID
	kind    string // event_type
	of      string // aggregate_type
	key     string // aggregate_id
	version int
	payload []byte
}

// writer runs one saga after the other on one connection.
type writer struct {
	shop   *Shop // whose books are kept; nil for no books
	conn   *pgx.Conn
	rng    *rand.Rand
	number int
	sagas  int
}

// saga is one order on its way through its saga. Its version counts its events that are committed.
type saga struct {
	id, saga, trace string
	version         int
	customer        customer
	items           []orderItem
	total           float64
}

// order runs one saga to its end, or until ctx ends:
//
//	created → stock reserved → payment authorized → completed, shipment requested
//	                              └─ or, out of reach of the parcel service:
//	                                 stock released, payment refunded, cancelled (compensated)
//
// Each step is a transaction, and some fail and are tried again, as in any application.
func (w *writer) order(ctx, hurry context.Context) error {
	o := w.newOrder()
	fails := w.rng.IntN(8) == 0
	steps := []step{
		{1, func(ctx context.Context, t *transaction) error {
			t.event(o, "order.created", "new order from the web shop")
			return t.exec(ctx, `INSERT INTO orders (order_id, customer, status, total) VALUES ($1, $2, 'created', $3)`, o.id, o.customer.ID, o.total)
		}},
		{len(o.items), func(ctx context.Context, t *transaction) error { return t.moveStock(ctx, o, 1) }},
		{1, func(ctx context.Context, t *transaction) error { return t.pay(ctx, o) }},
	}
	if fails {
		steps = append(steps, step{2 + len(o.items), func(ctx context.Context, t *transaction) error {
			if err := t.moveStock(ctx, o, -1); err != nil {
				return err
			}
			t.event(o, "payment.refunded", "compensation: the amount held on the card is free again")
			t.event(o, "order.cancelled", "compensation: every step of the saga is undone")
			return t.exec(ctx, `UPDATE orders SET status = 'cancelled', updated_at = now() WHERE order_id = $1`, o.id)
		}})
	} else {
		steps = append(steps, step{2, func(ctx context.Context, t *transaction) error {
			t.event(o, "order.completed", "all steps of the saga are done")
			t.event(o, "shipment.requested", "parcel service, next working day")
			return t.exec(ctx, `UPDATE orders SET status = 'completed', updated_at = now() WHERE order_id = $1`, o.id)
		}})
	}
	for _, step := range steps {
		for done := false; !done; {
			if !w.shop.pace.wait(ctx, step.events) {
				return nil
			}
			n, err := w.transact(hurry, o, step.do)
			if err != nil {
				return err
			}
			w.shop.pace.giveBack(step.events - n)
			done = n > 0
		}
	}
	w.shop.finished(fails)
	return nil
}

// step is one transaction of a saga, and about how many events it writes.
type step struct {
	events int
	do     func(ctx context.Context, t *transaction) error
}

// transaction is one under way, with the events it has written so far.
type transaction struct {
	pgx.Tx
	writer  *writer
	order   *saga
	written []event
	flushed int // of written: inserted already
	undone  int // events discarded by a savepoint
}

// transact runs one step in one transaction and commits it. One in twenty is rolled back instead,
// with its events in the table. It returns the number of events committed.
func (w *writer) transact(ctx context.Context, o *saga, do func(context.Context, *transaction) error) (int, error) {
	tx, err := w.conn.Begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("begin: %w", err)
	}
	t := &transaction{Tx: tx, writer: w, order: o}
	if err = do(ctx, t); err == nil {
		err = t.flush(ctx)
	}
	if err != nil {
		_ = tx.Rollback(ctx) // the first error is the one to return
		return 0, err
	}
	if w.rng.IntN(20) == 0 {
		if err := tx.Rollback(ctx); err != nil {
			return 0, fmt.Errorf("roll back: %w", err)
		}
		w.shop.undone(len(t.written), false)
		return 0, nil
	}
	ids := make([]relay.UUID, len(t.written))
	for i, e := range t.written {
		ids[i] = e.id
	}
	w.shop.opts.Committing(ids)
	if err := tx.Commit(ctx); err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	for _, e := range t.written {
		if e.key == o.id {
			o.version = e.version
		}
	}
	w.shop.committed(t.written)
	if t.undone > 0 {
		w.shop.undone(t.undone, true)
	}
	return len(t.written), nil
}

func (t *transaction) exec(ctx context.Context, sql string, args ...any) error {
	if _, err := t.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("write the order: %w", err)
	}
	return nil
}

// event writes an event of the order.
func (t *transaction) event(o *saga, kind, note string) {
	version := o.version + 1
	for _, e := range t.written {
		if e.key == o.id {
			version++
		}
	}
	t.add("order", o.id, kind, version, orderPayload{
		OrderID: o.id, Version: version, Customer: o.customer, Items: o.items, Total: o.total, Currency: "EUR", Note: note, OccurredAt: time.Now().UTC(),
	})
}

func (t *transaction) add(of, key, kind string, version int, payload any) {
	text, err := json.Marshal(payload)
	if err != nil {
		panic(fmt.Sprintf("payload of %s: %v", kind, err)) // plain structs
	}
	t.written = append(t.written, event{id: t.writer.uuid(), kind: kind, of: of, key: key, version: version, payload: text})
}

// flush inserts what was written since the last flush, row by row as most applications do. (A batch
// would go past what a session of the relay does with the names of tables; see sessions.)
func (t *transaction) flush(ctx context.Context) error {
	for _, e := range t.written[t.flushed:] {
		headers := fmt.Sprintf(`{"correlation_id": %q, "saga_name": "order", "step_name": %q, "traceparent": "00-%s-%016x-01"}`,
			t.order.id, e.kind, t.order.trace, t.writer.rng.Uint64())
		_, err := t.Exec(ctx, `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers)
			VALUES ($1, $2, $3, $4, $5, $6, $7)`, e.id.String(), t.order.saga, e.of, e.key, e.kind, string(e.payload), headers)
		if err != nil {
			return fmt.Errorf("write to the outbox: %w", err)
		}
	}
	t.flushed = len(t.written)
	return nil
}

// moveStock reserves the order's items, or gives them back. Many writers want the same few rows.
func (t *transaction) moveStock(ctx context.Context, o *saga, by int) error {
	kind := "stock.reserved"
	if by < 0 {
		kind = "stock.released"
	}
	for _, item := range o.items { // sorted, so that two orders do not wait for each other
		var version, available, reserved int
		err := t.QueryRow(ctx, `UPDATE stock SET reserved = reserved + $2, version = version + 1 WHERE sku = $1 RETURNING version, available, reserved`,
			item.SKU, by*item.Quantity).Scan(&version, &available, &reserved)
		if err != nil {
			return fmt.Errorf("move stock: %w", err)
		}
		t.add("stock", item.SKU, kind, version, stockPayload{
			SKU: item.SKU, Version: version, OrderID: o.id, Quantity: item.Quantity, Available: available, Reserved: reserved,
			Warehouse: warehouse, OccurredAt: time.Now().UTC(),
		})
	}
	return nil
}

// pay writes the payment. Now and then loyalty points are added in a savepoint, and half of those
// are refused and undone.
func (t *transaction) pay(ctx context.Context, o *saga) error {
	t.event(o, "payment.authorized", "card payment, 3-D Secure")
	if err := t.exec(ctx, `UPDATE orders SET status = 'paid', updated_at = now() WHERE order_id = $1`, o.id); err != nil {
		return err
	}
	if t.writer.rng.IntN(3) > 0 {
		return nil
	}
	if err := t.flush(ctx); err != nil {
		return err
	}
	outer := t.Tx
	savepoint, err := outer.Begin(ctx) // within a transaction pgx makes a savepoint
	if err != nil {
		return fmt.Errorf("savepoint: %w", err)
	}
	t.event(o, "loyalty.points_added", "one point for each euro")
	t.Tx = savepoint
	err = t.flush(ctx)
	t.Tx = outer
	if err != nil {
		return err
	}
	if t.writer.rng.IntN(2) == 0 {
		if err := savepoint.Commit(ctx); err != nil {
			return fmt.Errorf("release savepoint: %w", err)
		}
		return nil
	}
	if err := savepoint.Rollback(ctx); err != nil {
		return fmt.Errorf("roll back to savepoint: %w", err)
	}
	t.written = t.written[:len(t.written)-1]
	t.flushed = len(t.written)
	t.undone++
	return nil
}

// What the payloads look like: about 500 bytes for an order.
type (
	orderPayload struct {
		OrderID    string      `json:"order_id"`
		Version    int         `json:"version"`
		Customer   customer    `json:"customer"`
		Items      []orderItem `json:"items"`
		Total      float64     `json:"total"`
		Currency   string      `json:"currency"`
		Note       string      `json:"note"`
		OccurredAt time.Time   `json:"occurred_at"`
	}
	stockPayload struct {
		SKU        string    `json:"sku"`
		Version    int       `json:"version"`
		OrderID    string    `json:"order_id"`
		Quantity   int       `json:"quantity"`
		Available  int       `json:"available"`
		Reserved   int       `json:"reserved"`
		Warehouse  string    `json:"warehouse"`
		OccurredAt time.Time `json:"occurred_at"`
	}
	customer struct {
		ID      string `json:"id"`
		Name    string `json:"name"`
		Email   string `json:"email"`
		Address string `json:"address"`
	}
	orderItem struct {
		SKU      string  `json:"sku"`
		Title    string  `json:"title"`
		Quantity int     `json:"quantity"`
		Price    float64 `json:"price"`
	}
)

const warehouse = "Hamburg-Billbrook, gate 4"

var (
	names  = []string{"Ada Lovelace", "Grace Hopper", "Zoë Müller", "José Núñez", "Ольга Иванова", "田中さくら", "Niels \"Bo\" Jensen"}
	titles = []string{"Fountain pen, medium nib", "Notebook A5, dotted, 192 pages", "Ink, midnight blue, 50 ml", "Desk lamp, 3000 K"}
)

func (w *writer) newOrder() *saga {
	w.sagas++
	o := &saga{
		id: fmt.Sprintf("order-%d-%d", w.number+1, w.sagas), saga: w.uuid().String(), trace: fmt.Sprintf("%016x%016x", w.rng.Uint64(), w.rng.Uint64()),
	}
	number := w.rng.IntN(5000)
	o.customer = customer{
		ID: fmt.Sprintf("customer-%d", number), Name: names[number%len(names)], Email: fmt.Sprintf("customer-%d@example.com", number),
		Address: fmt.Sprintf("Musterstraße %d, 20457 Hamburg", 1+number%90),
	}
	for _, sku := range w.rng.Perm(stockItems)[:1+w.rng.IntN(2)] {
		item := orderItem{SKU: fmt.Sprintf("sku-%d", sku+1), Title: titles[sku%len(titles)], Quantity: 1 + w.rng.IntN(3), Price: float64(5+sku) + 0.95}
		o.items = append(o.items, item)
		o.total += float64(item.Quantity) * item.Price
	}
	slices.SortFunc(o.items, func(a, b orderItem) int {
		if a.SKU < b.SKU {
			return -1
		}
		return 1
	})
	return o
}

// uuid is a random one (RFC 9562, version 4).
func (w *writer) uuid() relay.UUID {
	var u relay.UUID
	for i := range u {
		u[i] = byte(w.rng.Uint32())
	}
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}
