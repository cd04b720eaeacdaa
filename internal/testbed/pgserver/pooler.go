package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed/child"
	"github.com/sagaz-relay/relay/internal/testbed/debian"
)

// Pooler is a PgBouncer in front of a server, in transaction mode: each transaction of a client may
// run in another session.
type Pooler struct {
	DSN     string // the server's, by way of the pooler
	dir     string
	process *child.Process
}

// StartPooler brings up a PgBouncer in front of the server of dsn, a URL, and waits until it takes
// connections. Where PgBouncer is missing it is installed, if possible. It logs in as the role of
// dsn, whichever role asks. settings are further lines for its configuration.
func StartPooler(ctx context.Context, dsn string, log io.Writer, settings ...string) (*Pooler, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.User == nil {
		// it is not shown: it has a password
		return nil, errors.New("the DSN of the server is not a URL with a user")
	}
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if err := debian.Install(ctx, log, "pgbouncer"); err != nil {
			return nil, err
		}
		if program, err = exec.LookPath("pgbouncer"); err != nil {
			return nil, err
		}
	}
	ports, err := child.FreePorts(1)
	if err != nil {
		return nil, err
	}
	p := &Pooler{}
	if p.dir, err = os.MkdirTemp("", "sagaz-pgbouncer-"); err != nil {
		return nil, err
	}
	password, _ := u.User.Password()
	conf := fmt.Sprintf("[databases]\n* = host=%s port=%s user=%s password='%s'\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nunix_socket_dir =\nauth_type = any\n"+
		"pool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 200\nlogfile = %s\n%s\n",
		u.Hostname(), u.Port(), u.User.Username(), strings.ReplaceAll(password, "'", "''"), ports[0], filepath.Join(p.dir, "log"), strings.Join(settings, "\n"))
	file := filepath.Join(p.dir, "pgbouncer.ini")
	if err := errors.Join(os.WriteFile(file, []byte(conf), 0o600), giveTo(file), giveTo(p.dir)); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	cmd := exec.Command(program, "-q", file)
	cmd.Dir = p.dir
	runAsUnprivileged(cmd)
	if p.process, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	address := net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[0]))
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-p.process.Done():
			return nil, p.Close()
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), p.Close())
		case <-time.After(10 * time.Millisecond):
		}
	}
	u.Host = address
	p.DSN = u.String()
	return p, nil
}

// Close ends the pooler, and all connections through it. It is an error when it has ended before.
func (p *Pooler) Close() (err error) {
	if p.process != nil && !p.process.Running() {
		logged, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		err = fmt.Errorf("pgbouncer ended by itself: %v: %s", p.process.Err(), logged)
	} else if p.process != nil {
		err = p.process.Stop(context.Background(), os.Kill) // it has nothing to save
	}
	return errors.Join(err, os.RemoveAll(p.dir))
}
