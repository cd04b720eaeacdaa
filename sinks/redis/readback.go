package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	goredis "github.com/redis/go-redis/v9"

	"github.com/sagaz-relay/relay/relay"
)

// Stored is an entry as a stream has it.
type Stored struct {
	Stream  string
	ID      string // the entry's
	EventID string // empty for an entry of another client
	Value   []byte
	Headers []relay.Header
}

// readPage is how many entries are read at once.
const readPage = 1000

// ReadBack gives f the entries that these streams got from since on, by the server's clock, stream by
// stream in its order, up to the ends that they have when they are begun. It changes nothing. What was
// trimmed or deleted is not there. It stops at f's first error.
func ReadBack(ctx context.Context, cfg Config, streams []string, since time.Time, f func(Stored) error) error {
	s, err := New(cfg, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	c, ctx, give, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	defer c.interruptible(ctx)()
	for _, stream := range streams {
		if err := readStream(ctx, c.rdb, stream, since, f); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("read back stream %.100q: %w", stream, err)
		}
	}
	return nil
}

func readStream(ctx context.Context, rdb *goredis.Client, stream string, since time.Time, f func(Stored) error) error {
	last, err := rdb.XRevRangeN(ctx, stream, "+", "-", 1).Result()
	if err != nil || len(last) == 0 {
		return err
	}
	for from := fmt.Sprint(max(since.UnixMilli(), 0)); ; {
		page, err := rdb.XRangeN(ctx, stream, from, last[0].ID, readPage).Result()
		if err != nil {
			return err
		}
		for _, e := range page {
			one, err := stored(stream, e)
			if err = errors.Join(err, ctx.Err()); err == nil {
				err = f(one)
			}
			if err != nil {
				return err
			}
		}
		if len(page) < readPage {
			return nil
		}
		from = "(" + page[len(page)-1].ID
	}
}

func stored(stream string, e goredis.XMessage) (Stored, error) {
	text := func(field string) string {
		s, _ := e.Values[field].(string)
		return s
	}
	one := Stored{Stream: stream, ID: e.ID, EventID: text(fieldEventID), Value: []byte(text(fieldValue))}
	if text(fieldHeaders) == "" {
		return one, nil
	}
	var headers map[string]string
	if err := json.Unmarshal([]byte(text(fieldHeaders)), &headers); err != nil {
		return one, nil // of another client
	}
	for name, value := range headers {
		one.Headers = append(one.Headers, relay.Header{Key: name, Value: value})
	}
	return one, nil
}
