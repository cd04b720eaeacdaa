package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	heartbeat = 10 * time.Second
	// connectTimeout bounds TCP, TLS and AMQP handshakes together.
	connectTimeout = 10 * time.Second
	// rpcTimeout bounds a question to the broker (open a channel, declare the exchange). amqp091
	// waits for the answer for ever, so the connection is dropped then.
	rpcTimeout = 10 * time.Second
	// discardTimeout bounds the close of a channel with missing confirms.
	discardTimeout = 5 * time.Second
	// blockedPatience is how long Publish waits for a blocked connection when it has sent nothing
	// yet. A short alarm then costs no failed attempt. After a long one the lane gets the error and
	// backs off.
	blockedPatience = time.Second
	// closePatience bounds Close.
	closePatience = time.Second
)

var errNotDone = fmt.Errorf("not done after %s", connectTimeout)

// link is one connection and its channels. It is used by all lanes at once, until dead is closed.
type link struct {
	cfg     Config
	log     hclog.Logger
	address string // without credentials
	conn    *amqp.Connection
	raw     *boundedConn

	dead      chan struct{}          // closed when the connection is gone; err is why
	isBlocked atomic.Bool            // the same as blocked != "", without the lock
	killed    atomic.Pointer[string] // why we dropped the connection, if we did
	// limit is the largest body that the broker takes, learnt from a refusal; 0: not known. Bound
	// to the connection, since the broker's setting may change with a restart.
	limit atomic.Int64

	writing sync.Mutex // held while a message is written; taken before amqp091's own locks

	mu sync.Mutex
	// Guarded by mu.
	err        error
	closing    bool           // no goroutine is started any more
	running    sync.WaitGroup // goroutines of this link
	idle       []*channel
	blocked    string        // the broker's reason while the connection is blocked
	unblocked  chan struct{} // closed when it no longer is
	discarding int           // channels with missing confirms that are being closed
	discarded  chan struct{} // closed when none is
	declared   bool          // the exchange is there, as far as we know
	declaring  *declaring    // under way
}

type declaring struct {
	done chan struct{} // closed when err is set
	err  error
}

// connectTo makes a connection to a node; see connect.
func connectTo(ctx context.Context, cfg Config, n node, log hclog.Logger) (*link, error) {
	tlsConfig, err := cfg.tls() // again each time, for certificates that were renewed
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, errNotDone)
	defer cancel()
	l := &link{cfg: cfg, log: log, address: address(n.uri), dead: make(chan struct{})}
	name := "sagaz-relay"
	if cfg.WorkerID != "" {
		name += " " + cfg.WorkerID
	}
	var login []amqp.Authentication // by user and password, or as the URL wants it
	if cfg.SASLMechanism == mechanismExternal {
		login = []amqp.Authentication{&amqp.ExternalAuth{}}
	}
	stop := func() bool { return true }
	l.conn, err = amqp.DialConfig(n.url, amqp.Config{
		SASL:            login,
		Heartbeat:       heartbeat,
		FrameSize:       frameLimit,
		TLSClientConfig: tlsConfig,
		Properties:      amqp.Table{"product": "sagaz-relay", "platform": "Go", "connection_name": name},
		Dial: func(network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			l.raw = newBoundedConn(conn, cfg.ConfirmTimeout)
			// amqp091's handshakes know no context
			stop = context.AfterFunc(ctx, func() { l.kill("connect: context ended") })
			return l.raw, nil
		},
	})
	if !stop() && err == nil {
		err = context.Cause(ctx) // killed just when it was done
	}
	if err != nil {
		if l.raw != nil {
			l.kill("connect")
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, cfg.connectError(n.uri, err)
	}
	l.raw.greeted.Store(true)
	blocks := l.conn.NotifyBlocked(make(chan amqp.Blocking, 16))
	closes := l.conn.NotifyClose(make(chan *amqp.Error, 1))
	l.running.Go(func() { l.watch(blocks, closes) })
	return l, nil
}

// watch follows the broker's notices about the connection until it is gone.
func (l *link) watch(blocks <-chan amqp.Blocking, closes <-chan *amqp.Error) {
	var cause *amqp.Error
	for blocks != nil || closes != nil {
		select {
		case b, ok := <-blocks:
			if !ok {
				blocks = nil
				continue
			}
			l.setBlocked(b)
		case err, ok := <-closes:
			if !ok {
				closes = nil
				continue
			}
			cause = err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = l.lost(cause)
	close(l.dead)
}

func (l *link) setBlocked(b amqp.Blocking) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case b.Active && l.blocked == "":
		l.blocked = b.Reason
		if l.blocked == "" {
			l.blocked = "no reason given"
		}
		l.unblocked = make(chan struct{})
		l.isBlocked.Store(true)
		l.log.Warn("connection blocked by the broker, publishing waits", "reason", l.blocked)
	case !b.Active && l.blocked != "":
		l.blocked = ""
		close(l.unblocked)
		l.isBlocked.Store(false)
		l.log.Info("connection unblocked by the broker")
	}
}

// blockedNow returns the reason, and a channel that is closed when it no longer holds.
func (l *link) blockedNow() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocked, l.unblocked
}

// lost returns why a channel or the connection was closed under us.
func (l *link) lost(err *amqp.Error) error {
	if why := l.killed.Load(); why != nil && (err == nil || !err.Server) {
		return fmt.Errorf("connection dropped: %s", *why)
	}
	return l.cfg.publishError(err)
}

// gone reports whether the connection has ended, or was dropped and is about to end.
func (l *link) gone() bool { return l.killed.Load() != nil || l.conn.IsClosed() }

// lostOr returns why the connection is gone, or err when it is not.
func (l *link) lostOr(err error) error {
	if !l.gone() {
		return err
	}
	<-l.dead // soon: amqp091 is closing it
	return l.cause()
}

// cause returns why the link is dead.
func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		return errors.New("connection closed")
	}
	return l.err
}

// publish hands a message to amqp091, and gathers what that writes (boundedConn) until flush. The
// fence is asked before it goes to the network. It does one at a time. amqp091 writes one at a time
// too, and this way it is known whose message it writes.
func (l *link) publish(ch *amqp.Channel, fence *func() bool, exchange, key string, msg amqp.Publishing) (*amqp.DeferredConfirmation, error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.raw.fence.Store(fence)
	defer l.raw.fence.Store(nil)
	return ch.PublishWithDeferredConfirm(exchange, key, true, false, msg)
}

// kill drops the connection without a close to the broker; amqp091's reader notices and ends
// everything else. The first reason given stays.
func (l *link) kill(why string) {
	l.killed.CompareAndSwap(nil, &why)
	_ = l.raw.Close() // nothing is lost that had its confirm
}

// killAfter kills the link unless the timer that it returns is stopped in time.
func (l *link) killAfter(d time.Duration, what string) *time.Timer {
	return time.AfterFunc(d, func() { l.kill(fmt.Sprintf("%s: no answer for %s", what, d)) })
}

// alive reports whether the connection was not lost yet, as far as is known.
func (l *link) alive() bool {
	select {
	case <-l.dead:
		return false
	default:
		return !l.conn.IsClosed()
	}
}

// spawn runs f in a goroutine that close waits for. It returns false when the link is being closed.
// The caller holds mu.
func (l *link) spawn(f func()) bool {
	if l.closing {
		return false
	}
	l.running.Go(f)
	return true
}

// close closes the connection properly if the broker answers in time, and waits until all
// goroutines have ended.
func (l *link) close() error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	timer := l.killAfter(2*closePatience, "close the connection")
	err := l.conn.CloseDeadline(time.Now().Add(closePatience))
	if errors.Is(err, amqp.ErrClosed) {
		err = nil // lost before
	}
	l.kill("closed")
	l.running.Wait()
	timer.Stop()
	return err
}

// ready waits until something may be published: the connection is not blocked, no channel has
// missing confirms, and the exchange is declared.
func (l *link) ready(ctx context.Context) error {
	for {
		l.mu.Lock()
		var wait <-chan struct{}
		var timeout <-chan time.Time
		var decl *declaring
		reason := l.blocked
		switch {
		case reason != "":
			wait = l.unblocked
			timer := time.NewTimer(blockedPatience)
			defer timer.Stop()
			timeout = timer.C
		case l.discarding > 0:
			wait = l.discarded
		case !l.declared:
			if l.declaring == nil {
				fresh := &declaring{done: make(chan struct{})}
				if !l.spawn(func() { l.declare(fresh) }) {
					l.mu.Unlock()
					return ErrClosed
				}
				l.declaring = fresh
			}
			decl = l.declaring
			wait = decl.done
		default:
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-wait:
			if decl != nil && decl.err != nil {
				return decl.err
			}
		case <-timeout:
			return fmt.Errorf("connection blocked by the broker: %s", reason)
		case <-l.dead:
			if decl != nil { // which may be why: it knows more
				if <-decl.done; decl.err != nil {
					return decl.err
				}
			}
			return l.cause()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// declare makes, or looks for, the exchange, on a channel of its own, since a refusal closes it.
func (l *link) declare(d *declaring) {
	timer := l.killAfter(rpcTimeout, "declare the exchange")
	defer timer.Stop()
	err := func() error {
		ch, err := l.conn.Channel()
		if err != nil {
			return err
		}
		if l.cfg.Declare {
			err = ch.ExchangeDeclare(l.cfg.Exchange, l.cfg.ExchangeType, true, false, false, false, nil)
		} else {
			err = ch.ExchangeDeclarePassive(l.cfg.Exchange, l.cfg.ExchangeType, true, false, false, false, nil)
		}
		return errors.Join(err, ch.Close())
	}()
	var ae *amqp.Error
	switch {
	case err == nil:
	case errors.As(err, &ae) && ae.Server:
		d.err = l.cfg.declareError(err)
	default:
		d.err = l.lostOr(l.cfg.declareError(err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.declared, l.declaring = err == nil, nil
	close(d.done)
}

// undeclared notes that the exchange is gone, so that it is declared before the next message.
func (l *link) undeclared() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.declared = false
}

// channel is an AMQP channel in confirm mode with what belongs to it. One attempt has it at a time.
type channel struct {
	ch *amqp.Channel
	// returns has room for the whole window: see the package comment.
	returns chan amqp.Return
	closes  chan *amqp.Error // why it was closed
	nacked  bool             // something was, on this channel
	headers amqp.Table       // reused for each message; amqp091 keeps no reference
	sent    []sent           // reused for each batch
}

// take returns an idle channel or opens one.
func (l *link) take(ctx context.Context) (*channel, error) {
	type opened struct {
		c   *channel
		err error
	}
	result, left := make(chan opened), make(chan struct{})
	l.mu.Lock()
	for n := len(l.idle); n > 0; n = len(l.idle) {
		c := l.idle[n-1]
		l.idle = l.idle[:n-1]
		if !c.ch.IsClosed() {
			l.mu.Unlock()
			return c, nil
		}
	}
	ok := l.spawn(func() {
		c, err := l.open()
		select {
		case result <- opened{c, err}:
		case <-left: // opened, and no longer needed
			if err == nil {
				l.put(c)
			}
		}
	})
	l.mu.Unlock()
	if !ok {
		return nil, ErrClosed
	}
	select {
	case r := <-result:
		return r.c, r.err
	case <-ctx.Done():
		close(left)
		return nil, context.Cause(ctx)
	}
}

func (l *link) open() (*channel, error) {
	timer := l.killAfter(rpcTimeout, "open a channel")
	defer timer.Stop()
	ch, err := l.conn.Channel()
	if err == nil {
		err = ch.Confirm(false)
	}
	if err != nil {
		return nil, l.lostOr(fmt.Errorf("open a channel: %w", reason(err)))
	}
	return &channel{
		ch:      ch,
		returns: ch.NotifyReturn(make(chan amqp.Return, l.cfg.Window+1)),
		closes:  ch.NotifyClose(make(chan *amqp.Error, 1)),
		headers: amqp.Table{},
	}, nil
}

// put gives a channel back that has no confirm outstanding. One with a nack is closed instead: when
// the node of a quorum queue's leader was killed (RabbitMQ 3.10.8), a channel was seen that got only
// nacks from then on, though another node led the queue.
func (l *link) put(c *channel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.nacked {
		l.idle = append(l.idle, c)
		return
	}
	l.spawn(func() { // without it, the connection is about to be closed
		timer := l.killAfter(discardTimeout, "close a channel with a nack")
		defer timer.Stop()
		_ = c.ch.Close() // an error means that the connection is gone
	})
}

// discard closes a channel that may have confirms outstanding. Until the broker has answered, ready
// lets nothing through. A channel's messages are routed in order and its close comes last, so once
// that is answered nothing that was sent on it can arrive behind what is sent from then on.
func (l *link) discard(c *channel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	done := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.discarding--; l.discarding == 0 {
			close(l.discarded)
		}
	}
	ok := l.spawn(func() {
		defer done()
		// A blocked connection is not read, so there would be no answer.
		if reason, unblocked := l.blockedNow(); reason != "" {
			select {
			case <-unblocked:
			case <-l.dead:
				return
			}
		}
		timer := l.killAfter(discardTimeout, "close a channel with missing confirms")
		defer timer.Stop()
		_ = c.ch.Close() // an error means that the connection is gone, which is as final
	})
	if !ok {
		return // the connection is about to be closed
	}
	if l.discarding++; l.discarding == 1 {
		l.discarded = make(chan struct{})
	}
}
