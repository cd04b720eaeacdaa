package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A log that nobody reads holds up nobody for long, and the number of lines that this costs is
// logged when it is read again.
func TestLogThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &gate{open: make(chan struct{})}
		log := newLogger(w, hclog.Info)
		start := time.Now()
		for range 100 {
			log.Info("into a pipe that is full")
		}
		if took := time.Since(start); took > logPatience {
			t.Errorf("100 lines took %s, want at most %s for all of them", took, logPatience)
		}
		close(w.open)
		synctest.Wait()
		log.Info("read again")
		got := w.bytes.String()
		if n := strings.Count(got, "into a pipe that is full"); n != 1 {
			t.Errorf("%d lines that hung were written, want the 1 that was under way", n)
		}
		if !strings.Contains(got, `"message":"nobody read the log, lines were dropped","lines":99}`) || !strings.HasSuffix(got, "\"message\":\"read again\"}\n") {
			t.Errorf("want the number of lines dropped, then the next line; got\n%s", got)
		}
	})
}

// gate is a pipe that takes nothing before it is opened.
type gate struct {
	open  chan struct{}
	bytes bytes.Buffer
}

func (g *gate) Write(line []byte) (int, error) {
	<-g.open
	return g.bytes.Write(line)
}

// Lines of several goroutines stay whole, and each is written when its call returns.
func TestLogLinesStayWhole(t *testing.T) {
	r, w := io.Pipe()
	log := newLogger(w, hclog.Info)
	const writers, each = 8, 50
	for range writers {
		go func() {
			for range each {
				log.Info("a line", "pad", strings.Repeat("p", 300))
			}
		}()
	}
	var got bytes.Buffer
	for strings.Count(got.String(), "\n") < writers*each {
		chunk := make([]byte, 100)
		n, err := r.Read(chunk)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(chunk[:n])
	}
	for line := range strings.Lines(got.String()) {
		if !strings.HasPrefix(line, `{"timestamp"`) || !strings.HasSuffix(line, "\"}\n") || strings.Count(line, "timestamp") != 1 {
			t.Fatalf("a line is not whole: %q", line)
		}
	}
}
