package rabbitmq

import (
	"fmt"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// BenchmarkAgainstBare compares Sink.Publish from four lanes with publishers that do nothing but
// publish and wait for confirms: the same messages, mandatory and persistent, the same window, one
// goroutine and four. They take turns on one queue, so that what else the machine does hits all of
// them.
//
//	go test -run '^$' -bench AgainstBare -benchtime 30x ./sinks/rabbitmq
func BenchmarkAgainstBare(b *testing.B) {
	const perRound = 8_000
	for _, kind := range []string{"classic", "quorum"} {
		for _, size := range []int{100, 500} { // records per Publish
			b.Run(fmt.Sprintf("%s/batch=%d", kind, size), func(b *testing.B) {
				r := newRoom(b, brokertest.RabbitMQ(b).URL, amqp.Table{"x-queue-type": kind})
				cfg := r.config()
				lanes := make([][]*relay.Record, 4)
				for i := range lanes {
					lanes[i] = sinktest.Records(bound, fmt.Sprintf("lane%d", i), 0, perRound/4)
					for _, rec := range lanes[i] {
						rec.Value = sinktest.NewRecord(bound, rec.Key, 0, 450).Value
					}
				}
				s := newSink(b, cfg)
				if err := s.Check(b.Context()); err != nil {
					b.Fatal(err)
				}
				conn, err := amqp.Dial(r.url)
				if err != nil {
					b.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				var bare [4]*amqp.Channel
				for i := range bare {
					if bare[i], err = conn.Channel(); err == nil {
						err = bare[i].Confirm(false)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				runs := []struct {
					name string
					took time.Duration
					run  func()
				}{
					{name: "bare1", run: func() {
						for _, lane := range lanes {
							publishBare(b, bare[0], cfg, lane)
						}
					}},
					{name: "bare4", run: func() {
						var wg sync.WaitGroup
						for i, lane := range lanes {
							wg.Go(func() { publishBare(b, bare[i], cfg, lane) })
						}
						wg.Wait()
					}},
					{name: "sink4", run: func() {
						var wg sync.WaitGroup
						for _, lane := range lanes {
							wg.Go(func() {
								for at := 0; at < len(lane); at += size {
									if err := s.Publish(b.Context(), lane[at:at+size]); err != nil {
										b.Error(err)
										return
									}
								}
							})
						}
						wg.Wait()
					}},
				}
				for b.Loop() {
					for i := range runs {
						if _, err := r.admin.QueuePurge(r.name, false); err != nil {
							b.Fatal(err)
						}
						start := time.Now()
						runs[i].run()
						runs[i].took += time.Since(start)
					}
				}
				for _, run := range runs {
					b.ReportMetric(float64(b.N*perRound)/run.took.Seconds(), run.name+"/s")
				}
				best := min(runs[0].took, runs[1].took)
				b.ReportMetric(best.Seconds()/runs[2].took.Seconds(), "ratio")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// publishBare is the least that publishes with confirms in a window.
func publishBare(b *testing.B, ch *amqp.Channel, cfg Config, recs []*relay.Record) {
	window := make([]*amqp.DeferredConfirmation, 0, cfg.Window)
	for _, rec := range recs {
		if len(window) == cfg.Window {
			if !window[0].Wait() {
				b.Error("nacked")
			}
			window = append(window[:0], window[1:]...)
		}
		headers := amqp.Table{}
		for _, h := range rec.Headers {
			headers[h.Key] = h.Value
		}
		c, err := ch.PublishWithDeferredConfirm(cfg.Exchange, rec.RoutingKey, true, false, amqp.Publishing{
			Headers: headers, ContentType: rec.ContentType, DeliveryMode: amqp.Persistent,
			MessageId: rec.EventID.String(), Timestamp: rec.Timestamp, Type: rec.EventType, Body: rec.Value,
		})
		if err != nil {
			b.Error(err)
			return
		}
		window = append(window, c)
	}
	for _, c := range window {
		if !c.Wait() {
			b.Error("nacked")
		}
	}
}

// BenchmarkPublish reports what one record costs us, without the broker's part.
func BenchmarkPublish(b *testing.B) {
	for _, kind := range []string{"classic", "quorum"} {
		b.Run(kind, func(b *testing.B) {
			r := newRoom(b, brokertest.RabbitMQ(b).URL, amqp.Table{"x-queue-type": kind, "x-max-length": int32(100_000)})
			s := newSink(b, r.config())
			batch := sinktest.Records(bound, "k", 0, 500)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Publish(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*len(batch))/b.Elapsed().Seconds(), "records/s")
		})
	}
}
