package rabbitmq

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/sinks/sinktest"
)

// closeCodes are all of AMQP 0-9-1 and RabbitMQ, and an end without any.
var closeCodes = []int{311, 312, 313, 320, 402, 403, 404, 405, 406, 501, 502, 503, 504, 505, 506, 530, 540, 541, 599, cut}

// poisoned makes a record that the scripted broker ends its channel or connection for.
func poisoned(key string, seq int) *relay.Record {
	rec := sinktest.NewRecord(bound, key, seq, 10)
	rec.Headers = append(rec.Headers, relay.Header{Key: "poison", Value: "yes"})
	return rec
}

func isPoison(message []byte) bool { return bytes.Contains(message, []byte("poison")) }

// onPoison is a broker that takes everything else.
func onPoison(code int, connection bool) func([]byte, bool) (int, string, bool) {
	return func(message []byte, _ bool) (int, string, bool) {
		if !isPoison(message) {
			return 0, "", false
		}
		return code, fmt.Sprintf("CODE_%d - %s", code, strings.Repeat("long text ", 40)), connection
	}
}

// mixed is a batch of 48 records of 12 keys, in which those at the given places are poisoned; the
// last key is only good.
func mixed(bad ...int) (batch []*relay.Record, isBad map[*relay.Record]bool) {
	seqs := map[string]int{}
	isBad = map[*relay.Record]bool{}
	for i := range 48 {
		key := fmt.Sprintf("k%d", i%12)
		rec := sinktest.NewRecord(bound, key, seqs[key], 10)
		for _, b := range bad {
			if b == i {
				rec = poisoned(key, 0)
				isBad[rec] = true
			}
		}
		if !isBad[rec] {
			seqs[key]++
		}
		batch = append(batch, rec)
	}
	return batch, isBad
}

var places = map[string][]int{"first": {0}, "middle": {20}, "last": {47}, "several": {3, 15, 17, 40, 41}}

// A record for which the broker closes the channel or the connection is found and refused, whatever
// the code and the record's place. The others arrive in order, in the same Publish where the code
// is about a message. An operator's close refuses no record.
func TestBrokerClosesForARecord(t *testing.T) {
	for _, connection := range []bool{false, true} {
		for _, code := range closeCodes {
			if code == cut && !connection {
				continue
			}
			t.Run(fmt.Sprintf("%d,connection=%v", code, connection), func(t *testing.T) {
				t.Parallel()
				for name, at := range places {
					var well atomic.Bool
					judge := onPoison(code, connection)
					broker := newScripted(t, func(m []byte, control bool) (int, string, bool) {
						if well.Load() {
							return 0, "", false
						}
						return judge(m, control)
					})
					s := newSink(t, broker.config())
					s.culprits.span = 0
					batch, bad := mixed(at...)
					want, refusedAt, behindAt := map[string]int{}, map[int]bool{}, map[int]bool{}
					poisonedKey := map[string]bool{}
					for i, rec := range batch {
						switch {
						case poisonedKey[rec.Key]:
							behindAt[i] = true
						case bad[rec]:
							refusedAt[i], poisonedKey[rec.Key] = true, true
						default:
							want[rec.Key]++
						}
					}
					offers := 1
					fault := faultOf(&amqp.Error{Code: code, Server: code != cut})
					if fault == faultUnclear {
						offers = unclearTimes
					}
					got := make([]error, len(batch))
					rest, restAt := batch, []int(nil)
					for i := range batch {
						restAt = append(restAt, i)
					}
					for range offers { // as a lane does
						var again []*relay.Record
						var againAt []int
						for i, err := range fates(t, rest, s.Publish(soon(t), rest)) {
							got[restAt[i]] = err
							if _, refused := relay.Refused(err); err != nil && !refused && !errors.Is(err, relay.ErrBehind) {
								again, againAt = append(again, rest[i]), append(againAt, restAt[i])
							}
						}
						if rest, restAt = again, againAt; len(rest) == 0 {
							break
						}
					}
					if fault == faultNobodys {
						for i, err := range got {
							if _, refused := relay.Refused(err); refused {
								t.Errorf("%s: record %d was refused though an operator closed: %v", name, i, err)
							}
						}
						well.Store(true)
						if _, err := sinktest.Offer(soon(t), s, rest); err != nil {
							t.Errorf("%s: %v", name, err)
						}
						continue
					}
					for i, err := range got {
						r, isRefused := relay.Refused(err)
						switch {
						case refusedAt[i] != isRefused, behindAt[i] != errors.Is(err, relay.ErrBehind), !refusedAt[i] && !behindAt[i] && err != nil:
							t.Errorf("%s: record %d: refused, behind: want %v, %v, got %v", name, i, refusedAt[i], behindAt[i], err)
						case isRefused && code != cut && !strings.Contains(err.Error(), fmt.Sprint(code)):
							t.Errorf("%s: record %d: %v does not have the broker's words", name, i, err)
						case isRefused && code != 311 && r.Reason != relay.ReasonRejected:
							t.Errorf("%s: reason %q", name, r.Reason)
						}
					}
					sinktest.CheckOrder(t, onlyKeys(broker.delivered(), want), want, true)
				}
			})
		}
	}
}

// onlyKeys leaves out keys of which nothing is expected, since repeats of them may have arrived.
func onlyKeys(got []sinktest.Delivered, want map[string]int) (out []sinktest.Delivered) {
	for _, d := range got {
		for key, n := range want {
			if n > 0 && bytes.Contains(d.Value, []byte(`"key":"`+key+`"`)) {
				out = append(out, d)
			}
		}
	}
	return out
}

// What the search costs: about log2(n) channels for one record in a thousand, and a bounded number
// for a batch of nothing else, which takes some offers. Offered again out of the ledger, they cost
// no more than that.
func TestCostOfTheSearch(t *testing.T) {
	broker := newScripted(t, onPoison(406, false))
	s := newSink(t, broker.config())
	s.culprits.span = 0
	batch := sinktest.Records(bound, "good", 0, 1000)
	batch[700] = poisoned("bad", 0)
	err := s.Publish(soon(t), batch)
	if _, refused := sinktest.Failed(batch, err); len(refused) != 1 {
		t.Fatalf("%d refused: %v", len(refused), err)
	}
	if n := broker.channels.Load(); n > 20 {
		t.Errorf("%d channels for one bad record in 1,000", n)
	}

	var all []*relay.Record
	for i := range 1000 {
		all = append(all, poisoned(fmt.Sprintf("k%d", i), 0))
	}
	for round := range 2 {
		rest, offers := all, 0
		for ; len(rest) > 0; offers++ {
			before := broker.channels.Load()
			err := s.Publish(soon(t), rest)
			again, refused := sinktest.Failed(rest, err)
			if len(again)+len(refused) != len(rest) || len(refused) == 0 {
				t.Fatalf("round %d: of %d %d failed and %d were refused: %v", round, len(rest), len(again), len(refused), err)
			}
			if n := broker.channels.Load() - before; n > maxChannels+5 {
				t.Errorf("round %d: %d channels in one offer", round, n)
			}
			rest = again
		}
		if most := []int{10, 1}[round]; offers > most {
			t.Errorf("round %d: %d offers, want at most %d", round, offers, most)
		}
	}
	// no lane is under way
	broker.judge = func([]byte, bool) (int, string, bool) { return 0, "", false }
	if err := s.Publish(soon(t), all); err != nil {
		t.Errorf("when the broker takes them: %v", err)
	}
}

// When the broker refuses a bare message, too, no record is to blame, and nothing is searched.
func TestBrokerClosesForEveryRecord(t *testing.T) {
	for _, code := range []int{403, 404, 406, 530, 541} {
		for _, connection := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d,connection=%v", code, connection), func(t *testing.T) {
				t.Parallel()
				broker := newScripted(t, func(m []byte, _ bool) (int, string, bool) {
					if m == nil {
						return 0, "", false
					}
					return code, "REFUSED - access to exchange 'saga-events' refused", connection
				})
				s := newSink(t, broker.config())
				s.culprits.span = 0
				batch, _ := mixed()
				for range 3 * unclearTimes {
					before := broker.channels.Load()
					transient(t, s.Publish(soon(t), batch), fmt.Sprint(code))
					if n := broker.channels.Load() - before; n > 12 {
						t.Errorf("%d channels in one offer", n)
					}
				}
			})
		}
	}
}

// A broker without transactions cannot be asked. What it takes afterwards shows that it was the
// record; a record that comes without any other is refused after some offers.
func TestBrokerWithoutTransactions(t *testing.T) {
	for name, answer := range map[string]int{"not implemented": 540, "no answer": deaf} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			judge := onPoison(406, false)
			broker := newScripted(t, func(m []byte, control bool) (int, string, bool) {
				if control && m == nil {
					return answer, "", true
				}
				return judge(m, control)
			})
			s := newSink(t, broker.config())
			s.culprits.span = 0
			batch, bad := mixed(0)
			err := s.Publish(soon(t), batch)
			if _, refused := sinktest.Failed(batch, err); len(refused) != 1 || !bad[refused[0]] {
				t.Errorf("%d refused: %v", len(refused), err)
			}
			lone := []*relay.Record{poisoned("lone", 0)}
			for offer := 1; ; offer++ {
				if _, refused := sinktest.Failed(lone, s.Publish(soon(t), lone)); len(refused) == 1 {
					break
				}
				if offer == 10 {
					t.Fatal("not refused after 10 offers")
				}
			}
		})
	}
}

// A connection that ends because of one lane's record takes the other lanes' messages with it. They
// are not blamed, and arrive.
func TestOtherLanesAreNotBlamed(t *testing.T) {
	for _, code := range []int{501, 541, cut} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			broker := newScripted(t, onPoison(code, true))
			s := newSink(t, broker.config())
			s.culprits.span = 0
			var lanes sync.WaitGroup
			want := map[string]int{}
			for lane := range 5 {
				key := fmt.Sprintf("lane%d", lane)
				want[key] = 300
				lanes.Go(func() {
					for first := 0; first < 300; first += 50 {
						if _, err := sinktest.Offer(soon(t), s, sinktest.Records(bound, key, first, 50)); err != nil {
							t.Errorf("%s: %v", key, err)
							return
						}
					}
				})
			}
			lanes.Go(func() {
				for i := range 3 {
					rest := []*relay.Record{sinktest.NewRecord(bound, fmt.Sprintf("ok%d", i), 0, 0), poisoned(fmt.Sprintf("bad%d", i), 0)}
					for deadline := time.Now().Add(patience); ; {
						again, refused := sinktest.Failed(rest, s.Publish(soon(t), rest))
						if len(refused) == 1 {
							return
						}
						if rest = again; time.Now().After(deadline) {
							t.Error("the culprit is not refused")
							return
						}
					}
				}
			})
			lanes.Wait()
			got := broker.delivered()
			sinktest.CheckOrder(t, onlyKeys(got, want), want, true)
		})
	}
}
