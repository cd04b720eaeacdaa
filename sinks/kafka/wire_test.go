package kafka

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

// server answers each connection by serve until the test ends.
func server(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			done.Go(func() {
				defer func() { _ = c.Close() }()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		done.Wait()
	})
	return ln.Addr().String()
}

// allocated runs f and returns how many bytes it allocated, and all others meanwhile.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// meets publishes to and checks an address at which no Kafka, or a bad one, answers; it takes
// little memory and time, and ends with its context.
func meets(t *testing.T, addr string, want ...string) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Brokers = []string{addr}
	cfg.DialTimeout, cfg.RequestTimeout = 2*time.Second, 2*time.Second
	start := time.Now()
	bytes := allocated(func() {
		s, err := New(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"check": s.Check(testContext(t)), "publish": s.Publish(testContext(t), values("t", "a", 2))} {
			if err == nil {
				t.Errorf("%s: no error", what)
				continue
			}
			if len(err.Error()) > 1500 {
				t.Errorf("%s: an error of %d bytes", what, len(err.Error()))
			}
			for _, part := range append(want, addr) {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: %q does not have %q", what, err, part)
				}
			}
		}
		closing := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(closing); took > 5*time.Second {
			t.Errorf("close took %s", took)
		}
	})
	if bytes > 16<<20 {
		t.Errorf("%d bytes allocated", bytes)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %s", took)
	}
}

// At the address is another server: kafka-go took its first bytes for the length of a frame, and
// gigabytes of memory.
func TestAnotherServerAnswers(t *testing.T) {
	asked := func(c net.Conn) { _, _ = c.Read(make([]byte, 1024)) }
	for name, tc := range map[string]struct {
		bytes string
		first bool // without being asked
		want  string
	}{
		"SSH":        {"SSH-2.0-OpenSSH_9.6\r\n", true, "SSH"},
		"SMTP":       {"220 mail.example ESMTP\r\n", true, "SMTP"},
		"HTTP":       {"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", false, "HTTP"},
		"PostgreSQL": {"E\x00\x00\x00\x5cSFATAL\x00C0A000\x00Munsupported frontend protocol 18.0\x00\x00", false, "PostgreSQL"},
		"MySQL":      {"\x4a\x00\x00\x00\x0a8.0.36\x00", true, "MySQL"},
		"Redis":      {"-ERR unknown command\r\n", false, "Redis"},
		"RabbitMQ":   {"AMQP\x00\x00\x09\x01", false, "RabbitMQ"},
		"TLS":        {"\x15\x03\x03\x00\x02\x02\x32", false, "TLS"},
		"noise":      {strings.Repeat("\xde\xad\xbe\xef", 100_000), true, "no frame of Kafka's"},
		"zeros":      {strings.Repeat("\x00", 100), true, "no frame of Kafka's"},
		"small lie":  {"\x00\x00\x00\x40" + strings.Repeat("\x7f", 0x40), true, "no frame of Kafka's"},
	} {
		t.Run(name, func(t *testing.T) {
			meets(t, server(t, func(c net.Conn) {
				if !tc.first {
					asked(c)
				}
				_, _ = io.WriteString(c, tc.bytes)
				_, _ = io.Copy(io.Discard, c)
			}), tc.want, "something else listens there")
		})
	}
	t.Run("silent", func(t *testing.T) {
		meets(t, server(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), "no answer in time")
	})
	t.Run("trickle", func(t *testing.T) {
		meets(t, server(t, func(c net.Conn) {
			_, err := c.Write([]byte{0, 0, 0x40, 0})
			for err == nil {
				time.Sleep(20 * time.Millisecond)
				_, err = c.Write([]byte{0})
			}
		}), "no answer in time")
	})
}

// A broker that becomes faulty later on: it agrees on versions and answers the next question with
// what makes no sense.
func TestHostileBroker(t *testing.T) {
	frame := func(length int32, body ...any) func(id int32) []byte {
		return func(id int32) []byte {
			var b bytes.Buffer
			for _, part := range append([]any{length, id}, body...) {
				_ = binary.Write(&b, binary.BigEndian, part)
			}
			if length == 0 {
				binary.BigEndian.PutUint32(b.Bytes(), uint32(b.Len()-4))
			}
			return b.Bytes()
		}
	}
	answer := func(m *metadata.Response) func(int32) []byte {
		return func(id int32) []byte {
			var b bytes.Buffer
			if err := protocol.WriteResponse(&b, 8, id, m); err != nil {
				panic(err)
			}
			return b.Bytes()
		}
	}
	partition := func(index int32) *metadata.Response {
		return &metadata.Response{Topics: []metadata.ResponseTopic{{Name: "t", Partitions: []metadata.ResponsePartition{{PartitionIndex: index}}}}}
	}
	for name, tc := range map[string]struct {
		bytes func(id int32) []byte
		want  string
	}{
		"frame of 2 GB":            {frame(1<<31 - 1), "no broker sends that"},
		"negative frame":           {frame(-5), "no broker sends that"},
		"2 billion brokers":        {frame(0, int32(0), int32(1<<31-1)), "beyond its end"},
		"30 million brokers":       {frame(0, int32(0), int32(30_000_000), make([]byte, 1000)), "beyond its end"},
		"a name of 32 kB":          {frame(0, int32(0), int32(1), int32(7), int16(32767), int32(0)), "beyond its end"},
		"truncated, then silence":  {frame(20<<20, int32(0)), "no answer in time"},
		"a number nobody asked":    {func(int32) []byte { return answer(&metadata.Response{})(4711) }, "4711"},
		"partition 2 billion":      {answer(partition(1<<31 - 2)), "partition 2147483646"},
		"partition -1":             {answer(partition(-1)), "partition -1"},
		"6,000 brokers":            {answer(&metadata.Response{Brokers: make([]metadata.ResponseBroker, 6000)}), "6000 brokers"},
		"noise of the right size":  {frame(0, int32(-1), bytes.Repeat([]byte{0x7f}, 4000)), "beyond its end"},
		"a string of minus 32,768": {frame(0, int32(0), int32(1), int32(7), int16(-32768), int32(0)), "beyond its end"},
	} {
		t.Run(name, func(t *testing.T) {
			meetsHostile(t, server(t, func(c net.Conn) {
				in := bufio.NewReader(c)
				for {
					version, id, _, req, err := protocol.ReadRequest(in)
					if err != nil {
						return
					}
					if req.ApiKey() == protocol.ApiVersions {
						res := &apiversions.Response{}
						for key := range responses {
							res.ApiKeys = append(res.ApiKeys, apiversions.ApiKeyResponse{ApiKey: int16(key), MaxVersion: 8})
						}
						if protocol.WriteResponse(c, version, id, res) != nil {
							return
						}
						continue
					}
					if req.ApiKey() == protocol.InitProducerId { // well so far
						version, id := version, id
						var b bytes.Buffer
						_ = binary.Write(&b, binary.BigEndian, id)
						if version >= 2 {
							b.WriteByte(0)
						}
						b.Write(make([]byte, 16))
						if version >= 2 {
							b.WriteByte(0)
						}
						if binary.Write(c, binary.BigEndian, int32(b.Len())) != nil {
							return
						}
						_, _ = c.Write(b.Bytes())
						continue
					}
					if _, err := c.Write(tc.bytes(id)); err != nil {
						return
					}
				}
			}), tc.want)
		})
	}
}

// meetsHostile is meets without the address, which not every such error has to name.
func meetsHostile(t *testing.T, addr, want string) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Brokers = []string{addr}
	cfg.DialTimeout, cfg.RequestTimeout, cfg.TopicWait = time.Second, time.Second, time.Second
	bytes := allocated(func() {
		s, err := New(cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Publish(testContext(t), values("t", "a", 2))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("publish: %v, want it to have %q", err, want)
		}
		if err := s.Check(testContext(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("check: %v, want it to have %q", err, want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if bytes > 32<<20 {
		t.Errorf("%d bytes allocated", bytes)
	}
}

// versionsOf are all versions of an answer that kafka-go can read.
func versionsOf(key protocol.ApiKey) (all []int16) {
	for v := key.MinVersion(); v <= key.MaxVersion(); v++ {
		all = append(all, v)
	}
	return all
}

// fill gives every field a value, with arrays and strings of random length.
func fill(v reflect.Value, rnd *rand.Rand) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[protocol.RecordSet]() {
			return
		}
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), rnd)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rnd.IntN(4), 4))
		for i := range v.Len() {
			fill(v.Index(i), rnd)
		}
	case reflect.String:
		v.SetString(strings.Repeat("s", rnd.IntN(200)))
	case reflect.Bool:
		v.SetBool(rnd.IntN(2) == 0)
	case reflect.Uint8:
		v.SetUint(uint64(rnd.IntN(256)))
	default:
		v.SetInt(int64(int8(rnd.IntN(256))))
	}
}

// What kafka-go writes passes, in each version of each answer, and no beginning of it does.
func TestCheckAgreesWithTheCodec(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for key, typ := range responses {
		for _, version := range versionsOf(key) {
			if key == protocol.Fetch { // its record sets are written by another path
				continue
			}
			for range 20 {
				msg := reflect.New(typ)
				fill(msg.Elem(), rnd)
				var b bytes.Buffer
				if err := protocol.WriteResponse(&b, version, 77, msg.Interface().(protocol.Message)); err != nil {
					t.Fatalf("%s v%d: %v", key, version, err)
				}
				whole := b.Bytes()[4:]
				if err := checkResponse(key, version, whole); err != nil {
					t.Errorf("seed %d: %s v%d: %v: %x", seed, key, version, err, whole)
				}
				for range 5 {
					if n := rnd.IntN(len(whole)); checkResponse(key, version, whole[:n]) == nil {
						t.Errorf("seed %d: %s v%d: the first %d bytes of %d pass", seed, key, version, n, len(whole))
					}
				}
			}
		}
	}
}

// Whatever the check lets through, the decoder takes without a panic, and with memory that fits its
// size.
func FuzzAnswer(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for key, typ := range responses {
		for _, version := range versionsOf(key) {
			if key == protocol.Fetch {
				continue
			}
			msg := reflect.New(typ)
			fill(msg.Elem(), rnd)
			var b bytes.Buffer
			if err := protocol.WriteResponse(&b, version, 1, msg.Interface().(protocol.Message)); err != nil {
				f.Fatal(err)
			}
			f.Add(int16(key), version, b.Bytes())
			f.Add(int16(key), version, b.Bytes()[:b.Len()/2])
		}
	}
	f.Add(int16(protocol.Metadata), int16(8), []byte("\x53SH-2.0-OpenSSH_9.6\r\n"))
	f.Fuzz(func(t *testing.T, key, version int16, stream []byte) {
		k := protocol.ApiKey(key)
		if responses[k] == nil || k == protocol.Fetch || version < k.MinVersion() || version > k.MaxVersion() {
			return
		}
		w := &wire{in: bufio.NewReader(bytes.NewReader(stream)), versions: map[protocol.ApiKey]int16{}}
		if n := allocated(func() { _, _, _ = w.response(k, version) }); n > uint64(1<<20+100*len(stream)) {
			t.Errorf("%s v%d: %d bytes allocated for %d", k, version, n, len(stream))
		}
	})
}

func BenchmarkCheckProduce(b *testing.B) {
	msg := reflect.New(responses[protocol.Produce])
	rnd := rand.New(rand.NewPCG(1, 1))
	fill(msg.Elem(), rnd)
	var out bytes.Buffer
	if err := protocol.WriteResponse(&out, 8, 1, msg.Interface().(protocol.Message)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := checkResponse(protocol.Produce, 8, out.Bytes()[4:]); err != nil {
			b.Fatal(fmt.Sprint(err))
		}
	}
}
