package file

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/sagaz-relay/relay/relay"
)

// linePrefix is how every line of ours begins; a torn tail is recognised by it.
const linePrefix = `{"topic":`

// AppendLine appends the record as one line of JSON, newline included. A body that is JSON is under
// "value", byte for byte. Any other, and one that has line breaks itself, is under "value_base64". A
// record without a value has neither.
func AppendLine(b []byte, rec *relay.Record) []byte {
	b = relay.AppendJSONString(append(b, linePrefix...), rec.Topic)
	b = relay.AppendJSONString(append(b, `,"key":`...), rec.MessageKey())
	b = rec.EventID.AppendText(append(b, `,"event_id":"`...))
	b = relay.AppendJSONString(append(b, `","event_type":`...), rec.EventType)
	b = rec.Timestamp.AppendFormat(append(b, `,"timestamp":"`...), time.RFC3339Nano)
	b = append(b, `","headers":{`...)
	for i := range rec.Headers {
		if i > 0 {
			b = append(b, ',')
		}
		b = relay.AppendJSONString(b, rec.Headers[i].Key)
		b = relay.AppendJSONString(append(b, ':'), rec.Headers[i].Value)
	}
	if rec.Value == nil {
		return append(b, '}', '}', '\n')
	}
	if inline(rec.Value) {
		b = append(append(b, `},"value":`...), rec.Value...)
		return append(b, '}', '\n')
	}
	b = base64.StdEncoding.AppendEncode(append(b, `},"value_base64":"`...), rec.Value)
	return append(b, '"', '}', '\n')
}

// inline reports whether the body can be part of a line as it is.
func inline(value []byte) bool {
	return bytes.IndexByte(value, '\n') < 0 && bytes.IndexByte(value, '\r') < 0 && utf8.Valid(value) && json.Valid(value)
}

// Line is one line as Read gives it.
type Line struct {
	Topic     string
	Key       string
	EventID   relay.UUID
	EventType string
	Timestamp time.Time
	Headers   map[string]string
	Value     []byte // the body as the record had it; nil for a record without one
}

// Read gives each whole line of the file to f, in order, and stops at f's first error. A last line
// without its newline is left out: it was never acknowledged. A line that is none of ours is an
// error with the line's number.
func Read(path string, f func(Line) error) error {
	in, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read outbox file: %w", err)
	}
	defer func() { _ = in.Close() }() // read only: nothing to lose
	r := bufio.NewReaderSize(in, 256<<10)
	for n := 1; ; n++ {
		text, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s line %d: %w", path, n, err)
		}
		line, err := parseLine(text)
		if err != nil {
			return fmt.Errorf("read %s line %d: %w", path, n, err)
		}
		if err := f(line); err != nil {
			return err
		}
	}
}

func parseLine(text []byte) (Line, error) {
	var raw struct {
		Topic     string            `json:"topic"`
		Key       string            `json:"key"`
		EventID   string            `json:"event_id"`
		EventType string            `json:"event_type"`
		Timestamp time.Time         `json:"timestamp"`
		Headers   map[string]string `json:"headers"`
		Value     json.RawMessage   `json:"value"`
		Base64    []byte            `json:"value_base64"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return Line{}, fmt.Errorf("not a line of sagaz-relay: %w", err)
	}
	id, err := relay.ParseUUID(raw.EventID)
	if err != nil {
		return Line{}, fmt.Errorf("not a line of sagaz-relay: %w", err)
	}
	line := Line{Topic: raw.Topic, Key: raw.Key, EventID: id, EventType: raw.EventType, Timestamp: raw.Timestamp, Headers: raw.Headers, Value: raw.Value}
	if raw.Base64 != nil {
		line.Value = raw.Base64
	}
	return line, nil
}
