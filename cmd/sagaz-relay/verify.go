package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/encode"
	"github.com/sagaz-relay/relay/relay/store"
	"github.com/sagaz-relay/relay/relay/verify"
	"github.com/sagaz-relay/relay/sinks/file"
	"github.com/sagaz-relay/relay/sinks/kafka"
	"github.com/sagaz-relay/relay/sinks/rabbitmq"
)

// verification is one run of the command.
type verification struct {
	settings *settings
	out      io.Writer

	since, until string
	sinks        []string
	queues       []string
	types        []string
	all          bool
	strict       bool
	asJSON       bool

	from, to time.Time
	conn     *pgx.Conn
	audit    *verify.Audit
	ids      *verify.EventIDs
	limit    int
}

const verifyHelp = `verify reads the events of saga_outbox and saga_outbox_archive that were created since --since, reads
back what the sinks hold, and compares the two by event_id. It prints events that are

  missing       their rows are sent, and the sink does not have them
  duplicates    there more than once; at-least-once delivery allows that, consumer_inbox takes
                care of it
  disagreeing   two sinks got events of one key in different orders, so one of them is out of
                order (with Kafka: within a topic)
  earlier       arrived behind an event of their key with a later created_at. That is the clock of
                an application, read before its commit: out of order where a key's events are made
                one after another, by design or by clocks perhaps elsewhere

Events that are still to come, by the ledger (saga_outbox_delivery) or by the row's status, count
as pending or as dead letters, and are not missing. Events that were refused and retried may come
late, and are left out of the two orders.

What is read:
  kafka         every topic of these events, from ten minutes before --since (by the records'
                time) to its end. Nothing is changed. What the topic's retention has deleted is
                reported as missing.
  rabbitmq      the queue of --queue (with several such sinks: --queue SINK=QUEUE for each).
                Messages are taken without an acknowledgement and given back
                at the end, to their places. Stop its consumers first: verify refuses a queue that
                has any, and shuts others out while it reads. Afterwards every message counts as
                redelivered; a quorum queue counts the delivery, and drops a message beyond its
                delivery-limit (20 in RabbitMQ 4), and one with more than 65535 messages cannot be
                read. What was consumed is reported as missing: use a queue of its own for this,
                bound before --since. A queue that is bound for some events only: name them with
                --event-type. Streams cannot be read.
  nats          the streams of these events' subjects, from ten minutes before --since to their
                ends. Nothing is changed. What a stream's limits have deleted, or its consumers
                (retention workqueue or interest), is reported as missing.
  redis         the streams called as these events' topics, likewise.
  file          the file of RELAY_FILE_PATH, or of RELAY_SINK_…_PATH.

Rules of RELAY_ROUTES are those of now: what they keep from a sink is not missing there, and what was
sent elsewhere before they were changed is (--since).

An event is missing only if it was sent when verify began; what is inserted and delivered meanwhile
does no harm. A row whose headers override event_id is found all the same. What was sent before a
sink was added is missing there: use --since, or replay it. Rows that were deleted
(RELAY_MARK=delete, RELAY_RETENTION) cannot be compared; what was delivered of them is listed as
not in the table. It takes about 100 bytes of memory an event, and one scan of the table.

Exit code 0: nothing is missing, and no sinks disagree (with --strict-order: and nothing is
earlier). 1 otherwise.`

func newVerify(load func() (*settings, error)) *cobra.Command {
	var v verification
	cmd := &cobra.Command{
		Use:   "verify --since TIME",
		Short: "Compare the table with what the brokers hold, event by event",
		Long:  verifyHelp,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			v.settings, v.out = s, cmd.OutOrStdout()
			if err := v.check(time.Now()); err != nil {
				return err
			}
			return v.run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&v.since, "since", "", "events created since then: `time` as 2026-11-23T07:00:00Z, or how long ago, as 2h")
	flags.StringVar(&v.until, "until", "", "events created before that `time`; default: no limit")
	flags.StringSliceVar(&v.sinks, "sink", nil, "the `sinks` to read back; default: all that are set")
	flags.StringArrayVar(&v.queues, "queue", nil, "the RabbitMQ `queue` to read back (see above what that does to it); SINK=QUEUE, once for each, where several sinks are of RabbitMQ")
	flags.StringSliceVar(&v.types, "event-type", nil, "only events of these `types`")
	flags.BoolVar(&v.all, "all", false, "list every finding, not just the first 20 of each kind")
	flags.BoolVar(&v.strict, "strict-order", false, "exit code 1 also for events that arrived against created_at")
	flags.BoolVar(&v.asJSON, "json", false, "print JSON")
	return cmd
}

// check reads the flags.
func (v *verification) check(now time.Time) error {
	if err := v.settings.database(); err != nil {
		return err
	}
	var err error
	if v.since == "" {
		return usageError{errors.New("verify: --since is not given: want 2026-11-23T07:30:00Z, 2026-11-23, or how long ago, such as 2h")}
	}
	if v.from, err = parseMoment("--since", v.since, now); err != nil {
		return usageError{err}
	}
	if v.to, err = parseMoment("--until", v.until, now); err != nil {
		return usageError{err}
	}
	if v.until != "" && !v.from.Before(v.to) {
		return usageError{errors.New("verify: --until: want a time after --since")}
	}
	if len(v.sinks) == 0 {
		v.sinks = v.settings.used()
	}
	for i, name := range v.sinks {
		v.sinks[i] = strings.ToLower(name)
		switch kind := v.settings.kindOf(v.sinks[i]); {
		case kind == nil:
			return usageError{fmt.Errorf("verify: no sink is called %s: want some of %s", name, strings.Join(v.settings.choosable(), ", "))}
		case kind.name == "stdout":
			return usageError{errors.New("verify: what went to stdout cannot be read back: choose others with --sink")}
		case kind.name == "webhook", kind.name == "sqs", kind.name == "sns":
			return usageError{fmt.Errorf("verify: what went to %s cannot be read back: choose others with --sink", v.sinks[i])}
		case kind.name == "rabbitmq" && v.queueOf(v.sinks[i]) == "":
			return usageError{fmt.Errorf("verify: %s needs %s, since an exchange keeps nothing; or choose others with --sink", v.sinks[i], v.queueFlag(v.sinks[i]))}
		default:
			if err := v.settings.validateSink(v.sinks[i]); err != nil {
				return configError{err}
			}
		}
	}
	slices.Sort(v.sinks)
	v.sinks = slices.Compact(v.sinks)
	v.limit = 20
	if v.all {
		v.limit = -1
	}
	return nil
}

// queueOf is the queue to read back for a sink of RabbitMQ, or empty.
func (v *verification) queueOf(sink string) string {
	for _, queue := range v.queues {
		if of, ok := strings.CutPrefix(queue, sink+"="); ok {
			return of
		}
	}
	if len(v.queues) == 1 && !v.severalQueues() {
		return v.queues[0]
	}
	return ""
}

// severalQueues reports whether more than one of the sinks is of RabbitMQ.
func (v *verification) severalQueues() bool {
	n := 0
	for _, name := range v.sinks {
		if kind := v.settings.kindOf(strings.ToLower(name)); kind != nil && kind.name == "rabbitmq" {
			n++
		}
	}
	return n > 1
}

// queueFlag is what the flag looks like for a sink.
func (v *verification) queueFlag(sink string) string {
	if v.severalQueues() {
		return "--queue " + sink + "=QUEUE"
	}
	return "--queue"
}

func (v *verification) run(ctx context.Context) (err error) {
	if v.conn, err = v.settings.connect(ctx, "verify"); err != nil {
		return err
	}
	defer v.conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // read only
	// The table first: what is sent by then is at the brokers by the time they are asked.
	if err := v.readTable(ctx); err != nil {
		return err
	}
	unknown := make(map[string]*stranger)
	for _, name := range v.sinks {
		unknown[name] = &stranger{v: v}
		if err := v.readSink(ctx, name, unknown[name]); err != nil {
			return err
		}
		if err := unknown[name].lookUp(ctx); err != nil {
			return err
		}
	}
	report := v.audit.Report(v.limit)
	for i := range report.Sinks {
		s := unknown[report.Sinks[i].Sink]
		report.Sinks[i].Unknown, report.Sinks[i].NoID = s.found, s.noID
	}
	return v.print(report)
}

func (v *verification) readTable(ctx context.Context) error {
	encoder, err := encode.New(v.settings.encode)
	if err != nil {
		return configError{err}
	}
	v.audit, v.ids = verify.NewAudit(), verify.NewEventIDs(encode.EventIDHeaders(v.settings.encode.Envelope))
	sealed := false
	seal := func() {
		if sealed {
			return
		}
		sealed = true
		for _, name := range v.sinks {
			kind := v.settings.kindOf(name)
			v.audit.Sink(name, kind.name == "kafka" || kind.readBack != nil)
		}
	}
	table, err := v.settings.routes()
	if err != nil {
		return configError{err}
	}
	routers := table.Routers()
	err = store.ReadAudit(ctx, v.conn, v.from, v.to, table.UsesHeaders() || encoder.UsesHeaders(), func(r store.AuditRow) error {
		if len(v.types) > 0 && !slices.Contains(v.types, r.Event.EventType) {
			return nil
		}
		row := verify.Row{ID: r.Event.ID, Key: r.Event.AggregateID, CreatedAt: r.Event.CreatedAt, Status: rowStatus(r.Status), Retried: r.RetryCount > 0}
		var rec relay.Record
		r.Event.Payload = "null" // for the names alone
		err := encoder.Encode(&rec, &r.Event)
		if err == nil {
			v.ids.Note(r.Event.ID, rec.Headers)
		} else { // its headers cannot be read, and it was not delivered
			r.Event.Headers = ""
			err = encoder.Encode(&rec, &r.Event)
		}
		if err != nil && !encoder.UsesHeaders() { // else it may have no topic, for want of a header
			return fmt.Errorf("name the topic of event %s: %w", r.Event.ID, err)
		}
		row.Topic = rec.Topic
		for _, name := range v.sinks {
			if router := routers[name]; router != nil {
				to := verify.To{Sink: name, Topic: rec.Topic}
				routed := relay.RouteOf(router, &rec, &r.Event)
				if to.Dropped = routed.Drop; routed.Record != nil {
					to.Topic = routed.Record.Topic
				}
				row.To = append(row.To, to)
			}
		}
		v.audit.Row(row)
		return nil
	}, func(e store.AuditEntry) error {
		seal()
		at := verify.Pending
		if e.State == relay.StateDead || e.Discarded {
			at = verify.Dead
		}
		v.audit.Parked(e.ID, e.Sink, at)
		return nil
	})
	seal()
	return err
}

func rowStatus(status string) verify.Status {
	switch status {
	case "sent":
		return verify.Sent
	case "dead_letter":
		return verify.Dead
	}
	return verify.Pending
}

// clockSlack is how far the clocks of applications may be ahead of the one that stamps records.
const clockSlack = 10 * time.Minute

func (v *verification) readSink(ctx context.Context, name string, unknown *stranger) error {
	arrived := func(id relay.UUID, replayed bool) error {
		if v.audit.Arrived(name, id, replayed) {
			return nil
		}
		return unknown.note(ctx, id)
	}
	waited := func(id relay.UUID) bool { return v.audit.Waits(name, id) }
	note := func(headers []relay.Header, messageID string, body []byte) error {
		id, found := v.ids.Of(headers, messageID, body, waited)
		if !found {
			unknown.noID++
			return nil
		}
		return arrived(id, slices.ContainsFunc(headers, func(h relay.Header) bool { return h.Key == relay.ReplayedHeader }))
	}
	if kind := v.settings.kindOf(name); kind.readBack != nil {
		return kind.readBack(ctx, v.settings.sinks[name], v.audit.Topics(name), v.from.Add(-clockSlack), func(m readMessage) error {
			return note(m.headers, m.eventID, m.body)
		})
	}
	switch cfg := v.settings.sinks[name].(type) {
	case *kafka.Config:
		return kafka.ReadBack(ctx, *cfg, v.audit.Topics(name), v.from.Add(-clockSlack), func(s kafka.Stored) error { return note(s.Headers, "", s.Value) })
	case *rabbitmq.Config:
		return rabbitmq.ReadBack(ctx, *cfg, v.queueOf(name), func(s rabbitmq.Stored) error { return note(s.Headers, s.MessageID, s.Value) })
	case *file.Config:
		if _, err := os.Stat(cfg.Path); errors.Is(err, fs.ErrNotExist) {
			return configError{fmt.Errorf("%s=%s: there is no such file here: want the file that the relay writes, on the machine that it runs on", cfg.Said("RELAY_FILE_PATH"), address.Path(cfg.Path))}
		}
		return file.Read(cfg.Path, func(l file.Line) error {
			_, replayed := l.Headers[relay.ReplayedHeader]
			return errors.Join(arrived(l.EventID, replayed), ctx.Err())
		})
	}
	return fmt.Errorf("sink %s cannot be read back", name)
}

// stranger gathers deliveries whose event is not among the rows, and keeps those that are not in
// the table at all: events that were created before --since, or while verify reads, do not count.
type stranger struct {
	v     *verification
	noID  int
	ask   []relay.UUID
	found verify.Found[string]
}

func (s *stranger) note(ctx context.Context, id relay.UUID) error {
	if s.ask = append(s.ask, id); len(s.ask) < 1000 {
		return nil
	}
	return s.lookUp(ctx)
}

func (s *stranger) lookUp(ctx context.Context) error {
	if len(s.ask) == 0 {
		return nil
	}
	there, err := store.Existing(ctx, s.v.conn, s.ask)
	if err != nil {
		return err
	}
	for _, id := range s.ask {
		if !there[id] {
			s.found.Add(s.v.limit, id.String())
		}
	}
	s.ask = s.ask[:0]
	return nil
}

// print prints the report; its error is what is wrong.
func (v *verification) print(r *verify.AuditReport) error {
	var err error
	if v.asJSON {
		err = term.WriteJSON(v.out, r)
	} else {
		_, err = io.WriteString(v.out, r.Text())
	}
	if err != nil {
		return err
	}
	var wrong []string
	for _, s := range r.Sinks {
		if s.Missing.Count > 0 {
			wrong = append(wrong, fmt.Sprintf("%d events are missing at %s", s.Missing.Count, s.Sink))
		}
		if v.strict && s.EarlierArrivedLater.Count > 0 {
			wrong = append(wrong, fmt.Sprintf("%d events arrived at %s against created_at", s.EarlierArrivedLater.Count, s.Sink))
		}
	}
	if n := r.Disagreements.Count; n > 0 {
		wrong = append(wrong, fmt.Sprintf("the sinks got %d events in different orders", n))
	}
	if len(wrong) > 0 {
		return errors.New("verify: " + strings.Join(wrong, "; "))
	}
	return nil
}
