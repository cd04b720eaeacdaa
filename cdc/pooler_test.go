package cdc

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sagaz-relay/relay/internal/testbed/pgtest"
)

// A pooler refuses the startup parameter that makes a replication connection, or takes it and gives
// an ordinary one.
func TestPooler(t *testing.T) {
	t.Parallel()
	t.Run("refuses", func(t *testing.T) {
		t.Parallel()
		err := openFails(t, answering(t, func(c net.Conn) {
			be := pgproto3.NewBackend(c, c)
			if _, err := be.ReceiveStartupMessage(); err == nil {
				be.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: replication"})
				_ = be.Flush()
			}
		}), "slot")
		wantSetup(t, err, "pooler", "unsupported startup parameter", "RELAY_MODE=polling")
		wantStreaming(t, err, true)
	})
	t.Run("ignores", func(t *testing.T) {
		t.Parallel()
		db := pgtest.New(t, pgtest.Migrated())
		u, err := url.Parse(db.DSN)
		if err != nil {
			t.Fatal(err)
		}
		server := u.Host
		u.Host = hostOf(t, answering(t, func(c net.Conn) { withoutParameter(t, c, server, "replication") }))
		err = newSource(t, config(u.String())).Check(t.Context(), whole("unused").Set)
		wantSetup(t, err, "pooler", "client backend")
		wantStreaming(t, err, true)
	})
}

// answering is a server that does with each connection what the test wants.
func answering(t testing.TB, serve func(net.Conn)) (dsn string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	return "postgres://somebody:s3cret@" + l.Addr().String() + "/db?sslmode=disable"
}

func hostOf(t testing.TB, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// withoutParameter passes a connection on to a server, with a parameter of the startup message left
// out.
func withoutParameter(t testing.TB, client net.Conn, host, parameter string) {
	server, err := net.Dial("tcp", host)
	if err != nil {
		t.Error(err)
		return
	}
	defer server.Close()
	msg, err := pgproto3.NewBackend(client, client).ReceiveStartupMessage()
	if err != nil {
		return
	}
	startup := msg.(*pgproto3.StartupMessage)
	delete(startup.Parameters, parameter)
	raw, err := startup.Encode(nil)
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := server.Write(raw); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		server.Close()
	}()
	_, _ = io.Copy(client, server)
	client.Close()
	<-done
}
