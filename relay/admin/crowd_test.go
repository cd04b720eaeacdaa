package admin

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/watch"
)

// crowd is a server with large metrics, whose gatherings are counted, and that stops with the test.
func crowd(t *testing.T) (s *Server, gathered *atomic.Int64) {
	t.Helper()
	reg := prometheus.NewRegistry()
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "large", Help: "x"}, []string{"l"})
	for i := range 20_000 {
		vec.WithLabelValues(fmt.Sprintf("%0100d", i)).Set(1)
	}
	gathered = new(atomic.Int64)
	reg.MustRegister(counting{vec, gathered})
	s, err := Listen(Config{Addr: "127.0.0.1:0"}, statusOf(watch.SlotStatus{Role: relay.Standby}), reg, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, gathered
}

// counting is a collector that counts how often it is asked.
type counting struct {
	*prometheus.GaugeVec
	times *atomic.Int64
}

// Collect implements prometheus.Collector.
func (c counting) Collect(to chan<- prometheus.Metric) {
	c.times.Add(1)
	c.GaugeVec.Collect(to)
}

// strangersAt opens connections, each of which sends a text and then neither sends nor reads.
func strangersAt(t *testing.T, s *Server, n int, text string) {
	t.Helper()
	for range n {
		conn, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.(*net.TCPConn).SetReadBuffer(4096)
		_, _ = conn.Write([]byte(text)) // it may have been closed for a newer one
	}
}

func probe(t *testing.T, s *Server, path string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	res, err := client.Get("http://" + s.Addr() + path)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("%s: %s", path, res.Status)
	}
}

// Whatever strangers do with their connections, probes are answered, and connections and work are
// bounded.
func TestCrowds(t *testing.T) {
	for name, text := range map[string]string{
		"AskForMetricsAndDoNotRead": "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
		"AskManyTimesAtOnce":        strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 50),
		"SayNothing":                "",
		"DribbleAHeader":            "GET /metrics HTTP/1.1\r\nHost: x\r\nA: ",
		"KeepAlive":                 "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n",
		"HugeHeader":                "GET /metrics HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 1<<20),
		"AnnounceABody":             "GET /status.json HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n",
		"Rubbish":                   "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
	} {
		t.Run(name, func(t *testing.T) {
			s, gathered := crowd(t)
			began := time.Now()
			strangersAt(t, s, 600, text)
			for range 5 {
				probe(t, s, "/health/live")
				probe(t, s, "/health/ready")
			}
			probe(t, s, "/metrics")
			// Each takes some milliseconds, and a fifth of the time is the most.
			if n := gathered.Load(); n > 1+time.Since(began).Milliseconds()/5 {
				t.Errorf("gathered %d times in %s", n, time.Since(began))
			}
		})
	}
}

// Connections that wait are not kept beyond the bound, and the newest stay.
func TestConnectionsAreBounded(t *testing.T) {
	c := newConns()
	var all []net.Conn
	for range 3 * mostConns {
		conn, peer := net.Pipe()
		t.Cleanup(func() { conn.Close(); peer.Close() })
		all = append(all, peer)
		c.state(conn, http.StateNew)
		if len(c.open) > mostConns {
			t.Fatalf("%d connections are open, want at most %d", len(c.open), mostConns)
		}
	}
	open := 0
	for i, peer := range all {
		_ = peer.SetReadDeadline(time.Now())
		if _, err := peer.Read(make([]byte, 1)); strings.Contains(err.Error(), "timeout") {
			open++
			if i < 2*mostConns {
				t.Fatalf("connection %d of %d is open, want the newest", i, len(all))
			}
		}
	}
	if open != mostConns {
		t.Errorf("%d are open, want %d", open, mostConns)
	}
}

// One that is being answered outlives those that wait, as long as there are such.
func TestAnswersOutliveIdleConnections(t *testing.T) {
	c := newConns()
	long := time.Now().Add(-time.Minute)
	active, idle, probe := &net.TCPConn{}, &net.UDPConn{}, &net.UnixConn{}
	c.open[active] = &connState{since: long.Add(-time.Minute), active: true}
	c.open[idle] = &connState{since: long}
	c.open[probe] = &connState{since: time.Now()}
	if got := c.oldest(nil); got != net.Conn(idle) {
		t.Errorf("closes %T, want the idle one", got)
	}
	delete(c.open, idle)
	if got := c.oldest(nil); got != net.Conn(active) {
		t.Errorf("closes %T, want the one that had its time, not the one that has just come", got)
	}
}

// All who ask while something is built share the next build, and no one gets what was built before
// they asked.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShared[int]()
		var builds atomic.Int64
		release := make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() {
			got, err := s.get(t.Context(), func() int { <-release; return int(builds.Add(1)) })
			if got != 1 || err != nil {
				t.Errorf("the first got %d, %v", got, err)
			}
		})
		synctest.Wait()
		for range 100 {
			all.Go(func() {
				got, err := s.get(t.Context(), func() int { return int(builds.Add(1)) })
				if got != 2 || err != nil {
					t.Errorf("got %d, %v, want what was built after they asked", got, err)
				}
			})
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.get(gone, func() int { t.Error("built for one who has gone"); return 0 })
		if err == nil {
			t.Error("no error for one who has gone")
		}
		synctest.Wait() // all have asked
		time.Sleep(time.Microsecond)
		close(release)
		all.Wait()
		if n := builds.Load(); n != 2 {
			t.Errorf("built %d times for 101 who asked, want 2", n)
		}
		time.Sleep(2 * longest) // an expensive build may serve this long
		if got, _ := s.get(t.Context(), func() int { return int(builds.Add(1)) }); got != 3 {
			t.Errorf("later: got build %d, want a new one", got)
		}
	})
}

// HTTP/2 is not offered: a peer could open and reset streams faster than they are answered.
func TestNoHTTP2(t *testing.T) {
	cert, key := pairOf(t, t.TempDir(), "relay")
	s, _ := serve(t, Config{CertFile: cert, KeyFile: key}, statusOf(watch.SlotStatus{Role: relay.Standby}))
	conn, err := tls.Dial("tcp", s.Addr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.ConnectionState().NegotiatedProtocol; got == "h2" {
		t.Errorf("negotiated %q", got)
	}
	_, _ = conn.Write([]byte("GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Errorf("got %q, %v", line, err)
	}
}

// Every format of the metrics comes from one build each, compressed or not, with the right content
// type.
func TestMetricFormats(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "one", Help: "x S3NT1NEL"}))
	h := Handler(Config{Redact: func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), "S3NT1NEL", "(hidden)")) }}, statusOf(watch.SlotStatus{}), reg)
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l) //nolint:errcheck // ends with the test
	defer srv.Close()
	for accept, want := range map[string]string{
		"":    "text/plain; version=0.0.4",
		"*/*": "text/plain; version=0.0.4",
		"application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.2": "application/openmetrics-text; version=1.0.0",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,text/plain":                            "application/vnd.google.protobuf",
		"text/plain;version=0.0.4": "text/plain; version=0.0.4",
	} {
		for _, compressed := range []bool{false, true} {
			client := &http.Client{Transport: &http.Transport{DisableCompression: !compressed, DisableKeepAlives: true}}
			req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+"/metrics", nil)
			req.Header.Set("Accept", accept)
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body := new(strings.Builder)
			_, err = bufio.NewReader(res.Body).WriteTo(body)
			res.Body.Close()
			if got := res.Header.Get("Content-Type"); !strings.HasPrefix(got, want) || err != nil || res.Uncompressed != compressed {
				t.Errorf("%q: got %q (compressed %t, %v), want %q (compressed %t)", accept, got, res.Uncompressed, err, want, compressed)
			}
			if !strings.Contains(body.String(), "one") || strings.Contains(body.String(), "S3NT1NEL") && !strings.Contains(want, "protobuf") {
				t.Errorf("%q: got %q", accept, body)
			}
		}
	}
}
