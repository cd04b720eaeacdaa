package chaos

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo starts a server that sends back what it gets, and reports each line.
func echo(t *testing.T) (addr string, got <-chan string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					lines <- line
					if _, err := io.WriteString(c, line); err != nil {
						return
					}
				}
			}()
		}
	}()
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String(), lines
}

// Each state of a link is what it is called: a suite whose network cannot fail tests nothing.
func TestLink(t *testing.T) {
	t.Parallel()
	addr, got := echo(t)
	l := newLink(t)
	l.connect(addr)
	dial := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, bufio.NewReader(c)
	}
	send := func(c net.Conn, what string) {
		t.Helper()
		if _, err := io.WriteString(c, what); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(r *bufio.Reader, want string) {
		t.Helper()
		if line, err := r.ReadString('\n'); err != nil || line != want {
			t.Fatalf("got %q and %v, want %q", line, err, want)
		}
	}
	// nothing wants no answer for a moment, and no end either.
	nothing := func(c net.Conn, r *bufio.Reader) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if b, err := r.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %q and %v, want silence", b, err)
		}
		c.SetReadDeadline(time.Time{})
	}
	ended := func(c net.Conn, r *bufio.Reader) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %v, want the end of the connection", err)
		}
	}

	c, r := dial()
	send(c, "open\n")
	hear(r, "open\n")

	start := time.Now()
	l.set(linkSlow, 30*time.Millisecond)
	send(c, "slow\n")
	hear(r, "slow\n")
	if took := time.Since(start); took < 60*time.Millisecond {
		t.Errorf("slow: there and back in %s, want 60ms at least", took)
	}

	l.set(linkDeaf, 0)
	drop(got)
	send(c, "deaf\n")
	if line := <-got; line != "deaf\n" {
		t.Errorf("deaf: the server got %q", line)
	}
	nothing(c, r)
	l.heal(false)
	hear(r, "deaf\n")

	drop(got)
	l.set(linkSilent, 0)
	send(c, "silent\n")
	nothing(c, r)
	if len(got) != 0 {
		t.Errorf("silent: the server got %q", <-got)
	}
	late, lateReader := dial()
	send(late, "late\n")
	nothing(late, lateReader)
	l.heal(false)
	hear(r, "silent\n")
	hear(lateReader, "late\n")

	// Only connections that have sent the name, as clients of PostgreSQL do first.
	named, namedReader := dial()
	send(named, "\x00application_name\x00sagaz-relay marks x\x00\n")
	hear(namedReader, "\x00application_name\x00sagaz-relay marks x\x00\n")
	l.mute("sagaz-relay marks")
	send(named, "muted\n")
	nothing(named, namedReader)
	send(c, "another\n")
	hear(r, "another\n")
	l.mute("")
	hear(namedReader, "muted\n")

	drop(got)
	l.set(linkSilent, 0)
	send(c, "forgotten\n")
	nothing(c, r)
	l.heal(true)
	ended(c, r)

	c, r = dial()
	send(c, "again\n")
	hear(r, "again\n")
	l.set(linkCut, 0)
	ended(c, r)
	if refused, err := net.Dial("tcp", l.addr); err == nil { // it may be reset before it is made
		ended(refused, bufio.NewReader(refused))
		refused.Close()
	}
	l.heal(false)
	c, r = dial()
	send(c, "open again\n")
	hear(r, "open again\n")
	for len(got) > 0 {
		if line := <-got; line == "forgotten\n" {
			t.Error("what a reset link held back arrived")
		}
	}
}

func drop(lines <-chan string) {
	for len(lines) > 0 {
		<-lines
	}
}
