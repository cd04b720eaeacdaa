package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/createtopics"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
)

// responses are the answers that this package reads. A request without its answer here is refused,
// so that none goes unchecked.
var responses = map[protocol.ApiKey]reflect.Type{
	protocol.ApiVersions:      reflect.TypeFor[apiversions.Response](),
	protocol.Metadata:         reflect.TypeFor[metadata.Response](),
	protocol.Produce:          reflect.TypeFor[produce.Response](),
	protocol.CreateTopics:     reflect.TypeFor[createtopics.Response](),
	protocol.InitProducerId:   reflect.TypeFor[initproducerid.Response](),
	protocol.DescribeConfigs:  reflect.TypeFor[describeconfigs.Response](),
	protocol.SaslHandshake:    reflect.TypeFor[saslhandshake.Response](),
	protocol.SaslAuthenticate: reflect.TypeFor[saslauthenticate.Response](),
	protocol.ListOffsets:      reflect.TypeFor[listoffsets.Response](),
	protocol.Fetch:            reflect.TypeFor[fetch.Response](),
}

// shape is what a message, or a part of it, looks like on the wire in one version. It is made of
// the same struct tags by which kafka-go decodes.
type shape struct {
	kind     shapeKind
	fixed    int      // bytes of a number
	parts    []*shape // of a structure
	elem     *shape   // of an array
	flexible bool     // lengths are varints, structures end with tagged fields
}

type shapeKind int

const (
	shapeFixed shapeKind = iota
	shapeString
	shapeBytes
	shapeArray
	shapeStruct
)

var (
	errTruncated = errors.New("a length or a count in it goes beyond its end")
	errUnchecked = errors.New("an answer of a kind that is not checked")
)

type shapeKey struct {
	key     protocol.ApiKey
	version int16
}

var shapes sync.Map // shapeKey → *shape

// checkResponse checks an answer, without its length, before it is decoded.
func checkResponse(key protocol.ApiKey, version int16, b []byte) error {
	k := shapeKey{key, version}
	s, ok := shapes.Load(k)
	if !ok {
		typ, known := responses[key]
		if !known {
			return errUnchecked
		}
		s, _ = shapes.LoadOrStore(k, shapeOf(typ, version, isFlexible(typ, version)))
	}
	if len(b) < 4 {
		return errTruncated
	}
	b = b[4:] // the request's number
	root := s.(*shape)
	if root.flexible {
		var err error
		if b, err = skipTags(b); err != nil {
			return err
		}
	}
	_, err := root.skip(b)
	return err
}

// fieldIn looks a field's tag up for a version.
func fieldIn(tag string, version int16) (in, tagged bool) {
	for option := range strings.SplitSeq(tag, "|") {
		lowest, highest, isTagged := -1, -1, false
		for part := range strings.SplitSeq(option, ",") {
			name, value, _ := strings.Cut(part, "=")
			n, _ := strconv.Atoi(strings.TrimPrefix(value, "v"))
			switch name {
			case "min":
				lowest = n
			case "max":
				highest = n
			case "tag":
				isTagged = true
			}
		}
		if lowest <= int(version) && int(version) <= highest {
			return true, isTagged
		}
	}
	return false, false
}

func isFlexible(typ reflect.Type, version int16) bool {
	for i := range typ.NumField() {
		if in, tagged := fieldIn(typ.Field(i).Tag.Get("kafka"), version); in && tagged {
			return true
		}
	}
	return false
}

func shapeOf(typ reflect.Type, version int16, flexible bool) *shape {
	switch kind := typ.Kind(); kind {
	case reflect.Bool, reflect.Int8:
		return &shape{fixed: 1}
	case reflect.Int16:
		return &shape{fixed: 2}
	case reflect.Int32:
		return &shape{fixed: 4}
	case reflect.Int64, reflect.Float64:
		return &shape{fixed: 8}
	case reflect.String:
		return &shape{kind: shapeString, flexible: flexible}
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Uint8 {
			return &shape{kind: shapeBytes, flexible: flexible}
		}
		return &shape{kind: shapeArray, flexible: flexible, elem: shapeOf(typ.Elem(), version, flexible)}
	case reflect.Struct:
		if typ == reflect.TypeFor[protocol.RecordSet]() {
			return &shape{kind: shapeBytes}
		}
		s := &shape{kind: shapeStruct, flexible: flexible}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if in, tagged := fieldIn(f.Tag.Get("kafka"), version); in && !tagged {
				s.parts = append(s.parts, shapeOf(f.Type, version, flexible))
			}
		}
		return s
	default:
		panic(fmt.Sprintf("kafka: field of type %s in an answer", typ))
	}
}

// skip returns what follows.
func (s *shape) skip(b []byte) ([]byte, error) {
	switch s.kind {
	case shapeFixed:
		return cutOff(b, s.fixed)
	case shapeString, shapeBytes:
		n, b, err := s.count(b)
		if err != nil {
			return nil, err
		}
		return cutOff(b, n)
	case shapeArray:
		n, b, err := s.count(b)
		if err != nil {
			return nil, err
		}
		if n > len(b) { // each has a byte at least
			return nil, errTruncated
		}
		for range n {
			if b, err = s.elem.skip(b); err != nil {
				return nil, err
			}
		}
		return b, nil
	default:
		var err error
		for _, part := range s.parts {
			if b, err = part.skip(b); err != nil {
				return nil, err
			}
		}
		if s.flexible {
			return skipTags(b)
		}
		return b, nil
	}
}

// count reads the length in front of a string, bytes or an array; null is 0.
func (s *shape) count(b []byte) (n int, rest []byte, err error) {
	switch {
	case s.flexible:
		u, rest, err := uvarint(b)
		if err != nil || u == 0 {
			return 0, rest, err
		}
		if u-1 > uint64(len(rest)) {
			return 0, nil, errTruncated
		}
		return int(u - 1), rest, nil
	case s.kind == shapeString:
		if len(b) < 2 {
			return 0, nil, errTruncated
		}
		return max(0, int(int16(binary.BigEndian.Uint16(b)))), b[2:], nil
	default:
		if len(b) < 4 {
			return 0, nil, errTruncated
		}
		return max(0, int(int32(binary.BigEndian.Uint32(b)))), b[4:], nil
	}
}

func cutOff(b []byte, n int) ([]byte, error) {
	if n > len(b) {
		return nil, errTruncated
	}
	return b[n:], nil
}

// skipTags skips tagged fields, of which kafka-go knows none in these answers.
func skipTags(b []byte) ([]byte, error) {
	n, b, err := uvarint(b)
	if err != nil || n > uint64(len(b)) {
		return nil, errTruncated
	}
	for range n {
		if _, b, err = uvarint(b); err != nil {
			return nil, err
		}
		var size uint64
		if size, b, err = uvarint(b); err != nil || size > uint64(len(b)) {
			return nil, errTruncated
		}
		b = b[size:]
	}
	return b, nil
}

func uvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errTruncated
	}
	return v, b[n:], nil
}
