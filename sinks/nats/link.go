package nats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/sagaz-relay/relay/relay"
)

// link is one connection, from its making to its loss. It is not used again after that.
type link struct {
	cfg    Config
	log    hclog.Logger
	nc     *nats.Conn
	js     jetstream.JetStream
	raw    *guarded
	inbox  string // acknowledgements come to inbox.TOKEN
	fences *fences

	// secretive: the user may not ask JetStream which stream has a subject. The server reports that
	// apart from the question, which gets no answer.
	secretive atomic.Bool

	dead   chan struct{} // closed when err is set
	closed chan struct{} // closed when the client has ended

	mu sync.Mutex
	// Guarded by mu.
	err    error // why it is dead
	next   uint64
	flying map[uint64]flight // by token
}

// flight is a message without an answer.
type flight struct {
	b       *batch
	i       int // of the record in the batch
	subject string
}

// connect opens a connection to one of the servers. It ends with ctx, which the connection does not
// outlive either.
func connect(ctx context.Context, cfg Config, log hclog.Logger) (*link, error) {
	l := &link{
		cfg: cfg, log: log, inbox: cfg.InboxPrefix + "." + nuid.Next(), fences: &fences{all: make(map[*batch]struct{})},
		dead: make(chan struct{}), closed: make(chan struct{}), flying: make(map[uint64]flight),
	}
	d := &dialer{ctx: ctx, timeout: cfg.DialTimeout, write: cfg.AckTimeout, fences: l.fences, broken: l.fail}
	name := "sagaz-relay"
	if cfg.WorkerID != "" {
		name += " " + cfg.WorkerID
	}
	options := []nats.Option{
		nats.Name(name), nats.SetCustomDialer(d), nats.SkipHostLookup(), nats.Timeout(cfg.DialTimeout), nats.FlusherTimeout(cfg.AckTimeout),
		// The lane offers again what was lost, and the next Publish connects: a client that
		// reconnects would send what it has kept meanwhile, whoever owns the slot by then.
		nats.NoReconnect(), nats.ReconnectBufSize(-1),
		nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2), nats.CustomInboxPrefix(cfg.InboxPrefix),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { l.complaint(err) }),
		nats.ClosedHandler(func(nc *nats.Conn) {
			l.fail(lost(nc.LastError()))
			close(l.closed)
		}),
	}
	if cfg.secure() {
		files, err := cfg.tls()
		if err != nil {
			return nil, err
		}
		options = append(options, nats.Secure(files))
	}
	login, err := cfg.login()
	if err != nil {
		return nil, err
	}
	if login != nil {
		options = append(options, login)
	}
	if l.nc, err = nats.Connect(strings.Join(cfg.Servers, ","), options...); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, cfg.connectError(err, d.err)
	}
	l.raw = d.conn
	if err := l.listen(); err != nil {
		l.kill(err)
		l.close()
		return nil, fmt.Errorf("connect to %s: %w", cfg.addresses(), err)
	}
	return l, nil
}

// listen subscribes to the acknowledgements.
func (l *link) listen() (err error) {
	if l.js, err = jetstream.New(l.nc); err != nil {
		return err
	}
	sub, err := l.nc.Subscribe(l.inbox+".*", l.answer)
	if err != nil {
		return err
	}
	// No more come than messages are under way, and none may be dropped.
	return sub.SetPendingLimits(-1, -1)
}

// send publishes a message and notes whose its answer is. It may block in a write.
func (l *link) send(f flight, msg *nats.Msg) (token uint64, err error) {
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return 0, l.err
	}
	l.next++
	token = l.next
	l.flying[token] = f
	l.mu.Unlock()
	msg.Reply = l.inbox + "." + strconv.FormatUint(token, 36)
	if err := l.nc.PublishMsg(msg); err != nil {
		l.forget(token)
		return 0, err
	}
	return token, nil
}

// forget drops what comes of a message that nobody waits for any more.
func (l *link) forget(tokens ...uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, token := range tokens {
		delete(l.flying, token)
	}
}

// pubAck is the answer of a stream.
type pubAck struct {
	Stream   string              `json:"stream"`
	Sequence uint64              `json:"seq"`
	Error    *jetstream.APIError `json:"error"`
}

// answer takes the answer to a message. The client calls it for one after the other.
func (l *link) answer(m *nats.Msg) {
	token, err := strconv.ParseUint(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], 36, 64)
	if err != nil {
		return
	}
	var fate error
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		fate = errNoResponders
	} else {
		var ack pubAck
		if err := json.Unmarshal(m.Data, &ack); err != nil || ack.Error == nil && ack.Stream == "" {
			return // of a plain subscriber, who takes the message for a request
		}
		if ack.Error != nil {
			fate = ack.Error
		}
	}
	l.mu.Lock()
	f, ok := l.flying[token]
	delete(l.flying, token)
	l.mu.Unlock()
	if ok {
		f.b.results <- result{f.i, fate} // which has room for one of each record
	}
}

// streamNames is the question which stream has a subject.
const streamNames = "$JS.API.STREAM.NAMES"

// deniedText is how a server reports a subject that the user has no right to.
var deniedText = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) to "([^"]*)"`)

// complaint takes what the server reports without being asked.
func (l *link) complaint(err error) {
	denied := deniedText.FindStringSubmatch(err.Error())
	switch {
	case denied == nil:
		l.log.Warn("the server reports an error", "error", err)
	case denied[2] == streamNames:
		l.secretive.Store(true)
	case strings.EqualFold(denied[1], "publish"):
		l.mu.Lock()
		var refused []flight
		for token, f := range l.flying {
			if f.subject == denied[2] {
				refused = append(refused, f)
				delete(l.flying, token)
			}
		}
		l.mu.Unlock()
		for _, f := range refused {
			f.b.results <- result{f.i, relay.Refuse(relay.ReasonRejected, fmt.Errorf("the user has no right to publish to subject %q: add it to the user's publish permissions", f.subject))}
		}
	case denied[2] == l.inbox+".*":
		l.kill(&relay.SetupError{
			Problem: "the user may not subscribe to " + l.cfg.InboxPrefix + ".>, where acknowledgements come to", Err: nats.ErrPermissionViolation,
			Fix: l.cfg.Said("let the user subscribe to it, or set RELAY_NATS_INBOX_PREFIX to where it may"),
		})
	}
}

// fail notes why the link is of no use any more. The first reason counts.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		close(l.dead)
	}
}

// kill ends the connection without waiting for anything: a write that hangs has the client's lock.
func (l *link) kill(err error) {
	l.fail(err)
	_ = l.raw.Close()
}

func (l *link) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err == nil
}

// reason is why the link is dead.
func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// close ends the connection and waits until the client has.
func (l *link) close() {
	l.kill(ErrClosed)
	l.nc.Close()
	<-l.closed
}

// lost is the error for messages that were under way when the connection ended.
func lost(err error) error {
	if err == nil {
		return errors.New("connection lost before the acknowledgement")
	}
	return fmt.Errorf("connection lost before the acknowledgement: %w", err)
}
