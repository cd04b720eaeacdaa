package chaos

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// processFaults happen to the relays themselves.
func processFaults() []*fault {
	return []*fault{
		{name: "kill", weight: 6, most: 2 * time.Second, seat: true, repeats: allSinks, do: (*round).kill},
		{name: "term", weight: 4, most: 2 * time.Second, seat: true, stops: true, do: (*round).term},
		{name: "freeze", weight: 4, least: time.Second, most: 2 * leaseTTL, seat: true, repeats: allSinks, do: (*round).freeze},
		{name: "twin", weight: 2, least: time.Second, most: 4 * time.Second, seat: true, stops: true, do: (*round).twin},
		{name: "mode", weight: 2, most: time.Second, seat: true, stops: true, do: (*round).switchMode},
	}
}

// seatOf is the relay that a step is about.
func (r *round) seatOf(s step) *seat {
	if s.seat >= 0 {
		return r.seats[s.seat]
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var owner string
	err := r.db.Pool.QueryRow(ctx, `SELECT owner FROM saga_outbox_relay WHERE slot = $1`, r.slotOf(s)).Scan(&owner)
	for _, seat := range r.seats {
		if err == nil && seat.name == owner {
			return seat
		}
	}
	return r.seats[s.pick%uint64(len(r.seats))] // the database is away, or nobody owns the slot
}

// kill ends a relay with SIGKILL and starts it again after a while.
func (r *round) kill(s step) error {
	seat := r.seatOf(s)
	seat.mu.Lock()
	defer seat.mu.Unlock()
	if err := seat.kill(); err != nil {
		return err
	}
	time.Sleep(s.hold)
	return seat.start()
}

// term is kill with SIGTERM.
func (r *round) term(s step) error {
	seat := r.seatOf(s)
	seat.mu.Lock()
	defer seat.mu.Unlock()
	err := seat.stop()
	time.Sleep(s.hold)
	return errors.Join(err, seat.start())
}

// freeze stops a relay where it is, mostly for longer than its lease, and lets it go on as if
// nothing had happened.
func (r *round) freeze(s step) error {
	seat := r.seatOf(s)
	seat.mu.Lock()
	defer seat.mu.Unlock()
	if err := seat.proc.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	time.Sleep(s.hold)
	return seat.proc.Signal(syscall.SIGCONT)
}

// twin starts a second relay with the name of the first, and stops it.
func (r *round) twin(s step) error {
	seat := r.seatOf(s)
	seat.mu.Lock()
	env := seat.env
	seat.mu.Unlock()
	p, err := r.launch(seat.name+"-twin", env, "run")
	if err != nil {
		return err
	}
	time.Sleep(s.hold)
	if !p.Running() {
		return errors.New("the twin ended by itself: " + p.lastLine())
	}
	return p.stop()
}

// switchMode restarts a relay in another mode: from the slot to polling the table, or back.
func (r *round) switchMode(s step) error {
	seat := r.seatOf(s)
	seat.mu.Lock()
	defer seat.mu.Unlock()
	err := seat.stop()
	mode := "polling"
	if seat.env["RELAY_MODE"] == mode {
		mode = "cdc"
	}
	seat.env = seat.env.with(settings{"RELAY_MODE": mode})
	time.Sleep(s.hold)
	return errors.Join(err, seat.start())
}
