package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	goredis "github.com/redis/go-redis/v9"

	"github.com/sagaz-relay/relay/relay"
)

// maxWaveBytes is how many bytes of bodies one pipeline has.
const maxWaveBytes = 4 << 20

// maxWave is how many records one pipeline has.
const maxWave = 500

// The fields of an entry, in this order (docs/messages.md).
const (
	fieldEventID = "event_id"
	fieldKey     = "key"
	fieldHeaders = "headers"
	fieldValue   = "value"
)

// errHeld is the error of a record that was not sent because one of its key before it is to be
// offered again first.
var errHeld = errors.New("not sent: a record of the same key before it was not acknowledged")

// batch is one Publish. One goroutine owns it.
type batch struct {
	sink   *Sink
	client *client
	recs   []*relay.Record
	fence  func() bool

	fates  []error
	behind []int // the next record of the same key; 0: none
	ready  []int // what may be sent, in order
}

// Publish adds the batch, wave by wave.
func (s *Sink) Publish(ctx context.Context, recs []*relay.Record) error {
	if len(recs) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c, ctx, give, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	if err := s.finished(ctx); err != nil {
		return err
	}
	b := &batch{sink: s, client: c, recs: recs, fence: relay.Fence(ctx), fates: make([]error, len(recs)), behind: make([]int, len(recs))}
	last := make(map[string]int, len(recs))
	for i, rec := range recs {
		if before, ok := last[rec.Key]; ok {
			b.behind[before] = i
		} else {
			b.ready = append(b.ready, i)
		}
		last[rec.Key] = i
	}
	for len(b.ready) > 0 {
		if down := b.wave(ctx); down != nil {
			for _, i := range b.ready {
				b.settle(i, down)
			}
			break
		}
	}
	for _, err := range b.fates {
		if err != nil {
			return &relay.BatchError{Errs: b.fates}
		}
	}
	return nil
}

// wave sends what is ready, as far as one pipeline goes. The error is the connection's: nothing more
// can be sent.
func (b *batch) wave(ctx context.Context) (down error) {
	pipe := b.client.rdb.Pipeline()
	var sent []int
	var cmds []*goredis.StringCmd
	for bytes := 0; len(b.ready) > 0 && len(sent) < maxWave && bytes < maxWaveBytes; {
		i := b.ready[0]
		b.ready = b.ready[1:]
		entry, err := b.sink.entry(b.recs[i])
		if err != nil {
			b.settle(i, err)
			continue
		}
		bytes += len(b.recs[i].Value)
		sent, cmds = append(sent, i), append(cmds, pipe.XAdd(ctx, entry))
	}
	if len(sent) == 0 {
		return nil
	}
	var wait *goredis.Cmd
	if n := b.sink.cfg.Replicas; n > 0 {
		// Redis answers before we give up, and counts the replicas that have it by then.
		wait = pipe.Do(ctx, "WAIT", n, (b.sink.cfg.Timeout * 2 / 3).Milliseconds())
	}
	if !b.fence() {
		return b.settleAll(sent, relay.ErrFence)
	}
	b.client.fence = b.fence
	stop := b.client.interruptible(ctx)
	_, err := pipe.Exec(ctx)
	b.client.fence = nil
	answered := true
	for _, cmd := range cmds {
		// Where it could not log in, the library leaves commands without an error.
		answered = answered && (cmd.Val() != "" || isAnswer(cmd.Err()))
	}
	if wait != nil {
		answered = answered && (wait.Val() != nil || isAnswer(wait.Err()))
	}
	if answered {
		b.client.conn.Load().unsure.Store(false)
		stop()
		replicas := 0
		if wait != nil {
			replicas, _ = wait.Int() // an error of its own: none
		}
		for j, i := range sent {
			err := cmds[j].Err()
			if err == nil && wait != nil && replicas < b.sink.cfg.Replicas {
				err = fmt.Errorf("stream %.100q: added, but %d of %d replicas have it: %w", b.recs[i].Topic, replicas, b.sink.cfg.Replicas, errReplicas)
			}
			b.settle(i, b.sink.cfg.fate(b.recs[i], err))
		}
		return nil
	}
	stop()
	if conn := b.client.conn.Load(); conn != nil {
		_ = conn.Close() // as the library has, if it was connected at all
	}
	return b.lost(ctx, sent, cmds, err)
}

// lost settles a wave whose connection has ended. What was answered before that counts.
func (b *batch) lost(ctx context.Context, sent []int, cmds []*goredis.StringCmd, err error) (down error) {
	switch {
	case !b.fence() || errors.Is(err, relay.ErrFence):
		down = relay.ErrFence
	case ctx.Err() != nil:
		down = fmt.Errorf("not acknowledged: %w", context.Cause(ctx))
	default:
		down = b.sink.cfg.failure(err)
	}
	large := sent[0]
	for _, i := range sent {
		if len(b.recs[i].Value) > len(b.recs[large].Value) {
			large = i
		}
	}
	limit := int64(0)
	if size := int64(len(b.recs[large].Value)); size > leastBulk && (tooLongText(err) || hungUp(err)) {
		if limit = b.client.bulkLimit(ctx); limit == 0 || size <= limit {
			large = -1
		}
	} else {
		large = -1
	}
	for j, i := range sent {
		switch {
		case i == large:
			b.settle(i, &relay.RefusedError{Reason: relay.ReasonTooLarge, Size: int64(len(b.recs[i].Value)), Limit: limit, Err: errors.New("above Redis' proto-max-bulk-len")})
		case cmds[j].Err() == nil && cmds[j].Val() != "" && b.sink.cfg.Replicas == 0:
			b.settle(i, nil)
		default:
			b.settle(i, down)
		}
	}
	return down
}

// leastBulk is the least that proto-max-bulk-len can be.
const leastBulk = 1 << 20

// bulkLimit is how long an argument may be, or 0 where the user may not ask (CONFIG GET). Redis hangs
// up on a longer one, and the error that it sends is lost with the connection mostly.
func (c *client) bulkLimit(ctx context.Context) int64 {
	defer c.interruptible(ctx)()
	got, err := c.rdb.ConfigGet(ctx, "proto-max-bulk-len").Result()
	if err != nil {
		return 0
	}
	limit, _ := strconv.ParseInt(got["proto-max-bulk-len"], 10, 64)
	return limit
}

func (b *batch) settleAll(list []int, err error) error {
	for _, i := range list {
		b.settle(i, err)
	}
	return err
}

// settle gives a record its fate, and those behind it of its key theirs if it is not acknowledged.
func (b *batch) settle(i int, err error) {
	b.fates[i] = err
	next := b.behind[i]
	if err == nil {
		if next != 0 {
			b.ready = append(b.ready, next)
		}
		return
	}
	fate := errHeld
	if _, refused := relay.Refused(err); refused {
		fate = relay.ErrBehind
	} else if errors.Is(err, relay.ErrFence) {
		fate = relay.ErrFence
	}
	for ; next != 0; next = b.behind[next] {
		b.fates[next] = fate
	}
}

// entry makes the arguments of XADD. The error is the record's own fault.
func (s *Sink) entry(rec *relay.Record) (*goredis.XAddArgs, error) {
	if rec.Topic == "" {
		return nil, relay.Refuse(relay.ReasonUnknownTopic, errors.New("the stream's name is empty: change event_type, RELAY_TOPIC or the topic of its rule"))
	}
	headers, err := encodeHeaders(rec.Headers)
	if err != nil {
		return nil, relay.Refuse(relay.ReasonEncode, fmt.Errorf("headers: %w", err))
	}
	value := rec.Value
	if value == nil {
		value = []byte{}
	}
	return &goredis.XAddArgs{
		Stream: rec.Topic, NoMkStream: !s.cfg.MakeStreams, MaxLen: int64(s.cfg.MaxLen), Approx: s.cfg.MaxLen > 0,
		Values: []any{fieldEventID, rec.EventID.String(), fieldKey, rec.MessageKey(), fieldHeaders, headers, fieldValue, value},
	}, nil
}

// encodeHeaders makes a JSON object of headers, in their order.
func encodeHeaders(headers []relay.Header) ([]byte, error) {
	out := []byte{'{'}
	for i, h := range headers {
		name, err := json.Marshal(h.Key)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(h.Value)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, name...), ':'), value...)
	}
	return append(out, '}'), nil
}
