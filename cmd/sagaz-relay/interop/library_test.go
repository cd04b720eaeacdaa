package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

func TestMain(m *testing.M) { brokertest.Main(pgtest.Closing(m)) }

// written is a row that the library inserted, in the order of commits.
type written struct {
	EventID     string `json:"event_id"`
	SagaID      string `json:"saga_id"`
	AggregateID string `json:"aggregate_id"`
	EventType   string `json:"event_type"`
}

// fixture is a database with the library's tables, prepared by us, and topics and exchange of its
// own.
type fixture struct {
	library
	db     *pgtest.DB
	kafka  *brokertest.KafkaServer
	rabbit *brokertest.RabbitMQServer

	prefix   string            // of all event types
	topics   string            // all legal ones
	settings map[string]string // of the relay
	indexes  map[string]string // as the library made them
}

func newFixture(t *testing.T, version string) *fixture {
	t.Helper()
	f := &fixture{library: library{python(t)}, kafka: brokertest.Kafka(t), rabbit: brokertest.RabbitMQ(t), db: pgtest.NewVersion(t, version)}
	f.prefix = "t" + strings.ToLower(rand.Text()[:8])
	f.settings = map[string]string{
		"DATABASE_URL": f.db.DSN, "RELAY_SLOT": f.prefix, "WORKER_ID": "interop", "METRICS_PORT": "0", "MAX_RETRIES": "1", "RELAY_UNROUTABLE_PATIENCE": "0s",
		"BROKER_TYPE": "kafka,rabbitmq", "KAFKA_BOOTSTRAP_SERVERS": f.kafka.Plaintext, "RABBITMQ_URL": f.rabbit.URL, "RABBITMQ_EXCHANGE": f.prefix,
	}
	f.makeTopics(t, "order.created", "order.paid", "Order_Compensated-1", "typed", "infinity", "ahead", "digits")

	call[any](t, f.library, "initialize", f.db.DSN)
	f.indexes = indexes(t, f.db)
	if len(f.indexes) < 6 {
		t.Fatalf("the library made the indexes %v: the test looks in the wrong place", f.indexes)
	}
	return f
}

func (f *fixture) makeTopics(t *testing.T, names ...string) {
	t.Helper()
	transport := &kafka.Transport{}
	client := &kafka.Client{Addr: kafka.TCP(f.kafka.Plaintext), Timeout: 30 * time.Second, Transport: transport}
	var configs []kafka.TopicConfig
	for i, name := range names {
		names[i] = f.prefix + "." + name
		configs = append(configs, kafka.TopicConfig{Topic: names[i], NumPartitions: 4, ReplicationFactor: 1})
	}
	answer, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: configs})
	if err != nil {
		t.Fatal(err)
	}
	for topic, err := range answer.Errors {
		if err != nil {
			t.Fatalf("create topic %s: %v", topic, err)
		}
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: names}) //nolint:errcheck // the broker goes soon
		transport.CloseIdleConnections()
	})
	f.topics = strings.Join(names, ",")
}

// indexes are those of the library's tables.
func indexes(t *testing.T, db *pgtest.DB) map[string]string {
	t.Helper()
	found := make(map[string]string)
	rows, err := db.Pool.Query(t.Context(), `SELECT indexname, indexdef || coalesce(' with ' || reloptions::text, '') FROM pg_indexes
		JOIN pg_class ON relname = tablename WHERE tablename IN ('saga_outbox', 'saga_outbox_archive', 'consumer_inbox')`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var name, definition string
		if err := rows.Scan(&name, &definition); err != nil {
			t.Fatal(err)
		}
		found[name] = definition
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return found
}

// statuses counts the rows.
func statuses(t *testing.T, db *pgtest.DB) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	rows, err := db.Pool.Query(t.Context(), `SELECT status, count(*) FROM saga_outbox GROUP BY status`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var status string
		var n int
		if err := rows.Scan(&status, &n); err != nil {
			t.Fatal(err)
		}
		counts[status] = n
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return counts
}

// waitStatuses waits until the rows have these statuses.
func waitStatuses(t *testing.T, db *pgtest.DB, want map[string]int) {
	t.Helper()
	var got map[string]int
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if got = statuses(t, db); maps.Equal(got, want) {
			return
		}
	}
	t.Fatalf("rows by status after %s: got %v, want %v", patience, got, want)
}

// insertSQL inserts a row that the library would not.
func insertSQL(t *testing.T, db *pgtest.DB, eventType, payload string) written {
	t.Helper()
	w := written{SagaID: "by-sql", AggregateID: "by-sql", EventType: eventType}
	err := db.Pool.QueryRow(t.Context(), `INSERT INTO saga_outbox (event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, status, created_at)
		VALUES (gen_random_uuid(), $1, 'order', $2, $3, $4, '{}', 'pending', now()) RETURNING event_id::text`, w.SagaID, w.AggregateID, w.EventType, payload).Scan(&w.EventID)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// copyRows gives another database the same rows, as inserted.
func copyRows(t *testing.T, from, to *pgtest.DB) {
	t.Helper()
	const columns = "event_id, saga_id, aggregate_type, aggregate_id, event_type, payload, headers, created_at"
	var rows bytes.Buffer
	if _, err := from.Conn(t).PgConn().CopyTo(t.Context(), &rows, "COPY (SELECT "+columns+" FROM saga_outbox) TO STDOUT"); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Conn(t).PgConn().CopyFrom(t.Context(), &rows, "COPY saga_outbox ("+columns+") FROM STDIN"); err != nil {
		t.Fatal(err)
	}
}

// digits has numbers that no float holds.
const digits = `{"pi": 3.14159265358979323846264338327950288, "price": 12345678901234567.123456789, "zeros": 1.10}`

func TestAgainstTheLibrary(t *testing.T) {
	for _, version := range pgtest.Versions() {
		t.Run("PostgreSQL "+version, func(t *testing.T) { testBesideTheLibrary(t, newFixture(t, version)) })
	}
}

func testBesideTheLibrary(t *testing.T, f *fixture) {
	// The library's tables stay as they are, and it starts on what we made of them.
	runRelay(t, f.settings, "migrate", "--slot")
	if got := indexes(t, f.db); !maps.Equal(got, f.indexes) {
		// Our own tables are not among them.
		t.Errorf("indexes after migrate: got %v, want those of the library, %v", got, f.indexes)
	}
	call[any](t, f.library, "initialize", f.db.DSN)
	if got := indexes(t, f.db); !maps.Equal(got, f.indexes) {
		t.Errorf("indexes after the library's next start: got %v, want %v", got, f.indexes)
	}

	// The key of consumer_inbox is the event alone, so two consumers need two of them.
	second := pgtest.NewVersion(t, f.db.Version)
	fromKafka := f.consume(t, "consume_kafka", f.kafka.Plaintext, f.topics, f.db.DSN)
	fromRabbit := f.consume(t, "consume_rabbitmq", f.rabbit.URL, f.prefix, second.DSN)

	// Part of the rows is there before the relay, part comes while it is killed.
	rows := call[written](t, f.library, "insert", f.db.DSN, f.prefix, "0", "100", "0")
	relay := startRelay(t, f.settings)
	inserted := make(chan []written)
	go func() {
		defer close(inserted)
		inserted <- call[written](t, f.library, "insert", f.db.DSN, f.prefix, "100", "260", "5", "odd")
	}()
	fromKafka.wait(t, "what is there when the relay is killed", func(d []delivery) bool { return len(d) >= 160 })
	if err := relay.Kill(); err != nil {
		t.Fatal(err)
	}
	relay = startRelay(t, f.settings)
	rows = append(rows, <-inserted...)
	withDigits := insertSQL(t, f.db, f.prefix+".digits", digits)
	// Kafka has no such topics, RabbitMQ does not mind
	refused := insertSQL(t, f.db, f.prefix+".no topic!", `{}`)
	rows = append(rows, withDigits)
	if len(rows) != 364 {
		t.Fatalf("the library inserted %d rows, want 364", len(rows))
	}

	ours := map[string]map[string]delivery{}
	for _, c := range []*consumer{fromKafka, fromRabbit} {
		want := rows
		if c == fromRabbit {
			want = append(slices.Clone(rows), refused)
		}
		c.wait(t, "every event", func(d []delivery) bool { return len(byEvent(d)) >= len(want) })
	}
	waitStatuses(t, f.db, map[string]int{"sent": 364, "dead_letter": 1})
	relay.stop(t)
	kafkaReceived, rabbitReceived := fromKafka.close(), fromRabbit.close()
	ours["kafka"], ours["rabbitmq"] = byEvent(kafkaReceived), byEvent(rabbitReceived)
	t.Run("each once to the inbox", func(t *testing.T) {
		checkOnce(t, "kafka", kafkaReceived, rows)
		checkOnce(t, "rabbitmq", rabbitReceived, append(slices.Clone(rows), refused))
	})
	t.Run("the library reads the rows", func(t *testing.T) { checkRead(t, f, rows, refused, ours) })

	theirs := runWorker(t, f)
	t.Run("as its worker sends them", func(t *testing.T) { checkEqual(t, f, rows, refused, withDigits, ours, theirs) })

	t.Run("the library archives them", func(t *testing.T) {
		got := call[struct{ Archived, Left int }](t, f.library, "archive", f.db.DSN)[0]
		if got.Archived != 364 || got.Left != 1 {
			t.Errorf("got %+v, want 364 archived and the dead letter left", got)
		}
	})
}

// byEvent takes the first delivery of each event.
func byEvent(received []delivery) map[string]delivery {
	first := make(map[string]delivery)
	for _, d := range received {
		if _, again := first[d.eventID]; !again {
			first[d.eventID] = d
		}
	}
	return first
}

// checkOnce checks that the inbox let every event through once, and each key's events in commit
// order.
func checkOnce(t *testing.T, sink string, received []delivery, rows []written) {
	handled := make(map[string]int)
	repeated := 0
	var order []string
	for _, d := range received {
		switch {
		case d.Handled != nil && *d.Handled:
			handled[d.eventID]++
			order = append(order, d.eventID)
		default:
			repeated++
		}
	}
	place := make(map[string]int, len(rows))
	for i, w := range rows {
		place[w.EventID] = i
		if handled[w.EventID] != 1 {
			t.Errorf("%s: event %d, %s, was handled %d times, want once", sink, i, w.EventID, handled[w.EventID])
		}
	}
	if len(handled) != len(rows) {
		t.Errorf("%s: %d events were handled, want %d", sink, len(handled), len(rows))
	}
	last := make(map[string]int)
	for _, id := range order {
		i := place[id]
		// a topic's partition is read in order, two topics are not
		key := rows[i].EventType + " " + rows[i].AggregateID
		if before, seen := last[key]; seen && before > i && (sink != "kafka" || rows[i].AggregateID != "") {
			t.Errorf("%s: event %d of %q came after event %d", sink, i, key, before)
		}
		last[key] = i
	}
	t.Logf("%s: %d events, %d repeated after the kill", sink, len(handled), repeated)
}

// stored is an event as the library reads it.
type stored struct {
	EventID    string  `json:"event_id"`
	Status     string  `json:"status"`
	CreatedAt  string  `json:"created_at"`
	ClaimedAt  *string `json:"claimed_at"`
	SentAt     *string `json:"sent_at"`
	RetryCount int     `json:"retry_count"`
	LastError  *string `json:"last_error"`
}

type readLine struct {
	Event   *stored  `json:"event"`
	Pending int      `json:"pending"`
	Stuck   []string `json:"stuck"`
	Dead    []stored `json:"dead"`
	Count   int      `json:"count"`
}

// checkRead checks that the library understands the rows that we marked.
func checkRead(t *testing.T, f *fixture, rows []written, refused written, ours map[string]map[string]delivery) {
	sagas := make(map[string]bool)
	for _, w := range rows {
		sagas[w.SagaID] = true
	}
	names, _ := json.Marshal(slices.Collect(maps.Keys(sagas)))
	lines := call[readLine](t, f.library, "read", f.db.DSN, string(names))
	summary := lines[len(lines)-1]
	if summary.Pending != 0 || len(summary.Stuck) != 0 || summary.Count != len(rows)+1 {
		t.Errorf("got %d pending, %d stuck, %d in all, want 0, 0, %d", summary.Pending, len(summary.Stuck), summary.Count, len(rows)+1)
	}
	if len(summary.Dead) != 1 || summary.Dead[0].EventID != refused.EventID || summary.Dead[0].RetryCount != 1 || summary.Dead[0].LastError == nil {
		t.Errorf("got dead letters %+v, want the one that Kafka refused, after 1 attempt, with its error", summary.Dead)
	} else if got := *summary.Dead[0].LastError; !strings.Contains(got, "kafka") || !strings.Contains(got, "topic") {
		t.Errorf("the dead letter's error is %q, want it to name the sink and the topic", got)
	}
	sent := make(map[string]stored)
	for _, line := range lines[:len(lines)-1] {
		sent[line.Event.EventID] = *line.Event
	}
	for _, w := range rows {
		e, ok := sent[w.EventID]
		if !ok || e.Status != "sent" || e.SentAt == nil || e.RetryCount != 0 || e.LastError != nil {
			t.Errorf("the library reads event %s as %+v, want it sent, with the time, without retries or errors", w.EventID, e)
		}
		// Infinity, years below 1000 and all: the timestamp is what the library makes of
		// created_at.
		for sink, received := range ours {
			var body struct {
				Timestamp string `json:"timestamp"`
			}
			if err := json.Unmarshal([]byte(received[w.EventID].Body), &body); err != nil || body.Timestamp != e.CreatedAt {
				t.Errorf("%s: event %s: got timestamp %q, want %q as the library reads the row", sink, w.EventID, body.Timestamp, e.CreatedAt)
			}
		}
	}
}

// runWorker has the library's worker publish the same rows, to Kafka's same topics and then to an
// exchange of its own.
func runWorker(t *testing.T, f *fixture) map[string]map[string]delivery {
	t.Helper()
	db := pgtest.NewVersion(t, f.db.Version)
	call[any](t, f.library, "initialize", db.DSN)
	copyRows(t, f.db, db)
	theirs := make(map[string]map[string]delivery)
	exchange := f.prefix + "-worker"
	settings := map[string]string{
		"DATABASE_URL": db.DSN, "WORKER_ID": "theirs", "POLL_INTERVAL": "0.05", "BATCH_SIZE": "100", "MAX_RETRIES": "2",
		"KAFKA_BOOTSTRAP_SERVERS": f.kafka.Plaintext, "RABBITMQ_URL": f.rabbit.URL, "RABBITMQ_EXCHANGE": exchange,
	}
	for _, run := range []struct {
		broker  string
		consume []string
		want    map[string]int
	}{
		// Pending are the two whose time has not come. Kafka does not get the one with typed
		// headers. The one without a topic is kept from it: the worker waits for 40 s at each
		// attempt, and then gives it up.
		{"kafka", []string{"consume_kafka", f.kafka.Plaintext, f.topics}, map[string]int{"sent": 361, "pending": 2, "dead_letter": 1, "claimed": 1}},
		{"rabbitmq", []string{"consume_rabbitmq", f.rabbit.URL, exchange}, map[string]int{"sent": 363, "pending": 2}},
	} {
		if _, err := db.Pool.Exec(t.Context(), `UPDATE saga_outbox SET status = 'pending', retry_count = 0, last_error = NULL, claimed_at = NULL, worker_id = NULL`); err != nil {
			t.Fatal(err)
		}
		if run.broker == "kafka" {
			if _, err := db.Pool.Exec(t.Context(), `UPDATE saga_outbox SET status = 'claimed' WHERE event_type LIKE '% %'`); err != nil {
				t.Fatal(err)
			}
		}
		c := f.consume(t, run.consume...)
		settings["BROKER_TYPE"] = run.broker
		worker := f.worker(t, settings)
		waitStatuses(t, db, run.want)
		worker.stop(t)
		c.wait(t, "what the worker marked sent", func(d []delivery) bool { return len(d) >= run.want["sent"] })
		theirs[run.broker] = byEvent(c.close())
	}
	return theirs
}

// checkEqual compares what two brokers got from us and from the library's worker.
func checkEqual(t *testing.T, f *fixture, rows []written, refused, withDigits written, ours, theirs map[string]map[string]delivery) {
	compared := 0
	for _, w := range append(slices.Clone(rows), refused) {
		kind := strings.TrimPrefix(w.EventType, f.prefix)
		for _, sink := range []string{"kafka", "rabbitmq"} {
			our, weSent := ours[sink][w.EventID]
			their, theySent := theirs[sink][w.EventID]
			name := fmt.Sprintf("%s: %s of %q (%s)", sink, kind, w.AggregateID, w.EventID)
			switch {
			case sink == "kafka" && w == refused:
				if weSent || theySent {
					t.Errorf("%s: sent to a topic that cannot be", name)
				}
				continue
			case kind == ".infinity" || kind == ".ahead": // ours only
				if theySent {
					t.Errorf("%s: the worker has sent it: the list of differences is out of date", name)
				}
				continue
			case sink == "kafka" && kind == ".typed": // ours only
				want := map[string]any{"int": "5", "float": "1.5", "yes": "true", "none": "null", "table": `{"a": [1, "b"]}`, "text": "t"}
				got := headerMap(t, our.Headers)
				for header, value := range want {
					if got[header] != value {
						t.Errorf("%s: header %s: got %v, want %v", name, header, got[header], value)
					}
				}
				if theySent {
					t.Errorf("%s: the worker has sent it: the list of differences is out of date", name)
				}
				continue
			}
			if !weSent || !theySent {
				t.Errorf("%s: sent by us %t, by the worker %t, want both", name, weSent, theySent)
				continue
			}
			compared++
			body := differenceJSON(our.Body, their.Body)
			if w == withDigits {
				if !strings.Contains(our.Body, digitsAsStored) || body == "" {
					t.Errorf("%s: got the body %s, want the digits as they are in the row; the worker sent %s", name, our.Body, their.Body)
				}
			} else if body != "" {
				t.Errorf("%s: the bodies differ at %s", name, body)
			}
			if our.Source != their.Source || our.Source != w.EventType {
				t.Errorf("%s: got topic or routing key %q, the worker used %q", name, our.Source, their.Source)
			}
			if sink == "kafka" {
				compareKafka(t, name, our, their)
			} else {
				compareRabbit(t, name, kind, our, their)
			}
		}
	}
	if want := 361 + 363; compared != want {
		t.Errorf("compared %d messages, want %d", compared, want)
	}
}

// digitsAsStored is digits as PostgreSQL renders the jsonb.
const digitsAsStored = `{"pi": 3.14159265358979323846264338327950288, "price": 12345678901234567.123456789, "zeros": 1.10}`

func compareKafka(t *testing.T, name string, our, their delivery) {
	t.Helper()
	if !reflect.DeepEqual(our.Key, their.Key) {
		t.Errorf("%s: got key %v, the worker used %v", name, text(our.Key), text(their.Key))
	}
	if our.Key != nil && our.Position != their.Position {
		t.Errorf("%s: got partition %d, the worker used %d", name, our.Position, their.Position)
	}
	if !reflect.DeepEqual(our.Headers, their.Headers) {
		t.Errorf("%s: got headers %v, the worker sent %v", name, our.Headers, their.Headers)
	}
}

func compareRabbit(t *testing.T, name, kind string, our, their delivery) {
	t.Helper()
	got, want := headerMap(t, our.Headers), headerMap(t, their.Headers)
	if kind == ".typed" {
		typed := map[string]any{"int": 5.0, "float": 1.5, "yes": true, "none": nil, "table": map[string]any{"a": []any{1.0, "b"}}}
		texts := map[string]any{"int": "5", "float": "1.5", "yes": "true", "none": "null", "table": `{"a": [1, "b"]}`}
		for header := range typed {
			if got[header] != texts[header] || !reflect.DeepEqual(want[header], typed[header]) {
				t.Errorf("%s: header %s: got %#v, the worker sent %#v", name, header, got[header], want[header])
			}
			delete(got, header)
			delete(want, header)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got headers %v, the worker sent %v", name, got, want)
	}
	if our.MessageID == nil || *our.MessageID != our.eventID || our.Type == nil || *our.Type != our.Source {
		t.Errorf("%s: got message id %s and type %s, want the event's", name, text(our.MessageID), text(our.Type))
	}
	if their.Type != nil || their.Timestamp != nil {
		t.Errorf("%s: the worker sets type %s, timestamp %s: the list of differences is out of date", name, text(their.Type), text(their.Timestamp))
	}
	// What is left of the properties is the same.
	for _, d := range []*delivery{&our, &their} {
		*d = delivery{
			ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode, Priority: d.Priority, CorrelationID: d.CorrelationID,
			ReplyTo: d.ReplyTo, Expiration: d.Expiration, AppID: d.AppID, UserID: d.UserID,
		}
	}
	if !reflect.DeepEqual(our, their) || our.ContentType != "application/json" || our.DeliveryMode != 2 {
		t.Errorf("%s: got properties %+v, the worker sent %+v", name, our, their)
	}
}

func text(s *string) string {
	if s == nil {
		return "none"
	}
	return fmt.Sprintf("%q", *s)
}
