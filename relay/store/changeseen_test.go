package store

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sagaz-relay/relay/relay"
)

// Every relay sees how far a change is and for whom it waits, also one that owns nothing, and so
// does who reads the database.
func TestChangeIsSeen(t *testing.T) {
	t.Parallel()
	c := changing(t, 2)
	if c == nil {
		return
	}
	var log syncBuffer
	c.log = hclog.New(&hclog.LoggerOptions{Output: &log})
	create := c.create
	hold := make(chan struct{})
	c.create = func(ctx context.Context, shard relay.Shard) (relay.LSN, error) {
		<-hold
		return create(ctx, shard)
	}
	var crew []*mate
	for range 3 {
		crew = append(crew, c.join())
	}
	c.even("three")
	for _, m := range crew {
		if change := m.store.Changing(); change != nil {
			t.Errorf("%s sees a change before there is one: %+v", m.name, *change)
		}
	}
	c.stuck.Store(true)
	exec(t, c.db, `UPDATE saga_outbox_relay SET confirmed_lsn = '0/1000'`)
	c.begin(4)
	changer := c.changerIn(SetMaking)
	see := func(when, waits string, old ...relay.OldSlot) {
		t.Helper()
		for _, m := range crew {
			var change *relay.SetChange
			c.until(when+", "+m.name, func() bool {
				change = m.store.Changing()
				return change != nil && strings.Contains(change.Waits(), waits) && slices.EqualFunc(change.Old, old, func(got, want relay.OldSlot) bool {
					return got.Slot == want.Slot && got.Owner == want.Owner && got.Stopped == want.Stopped && got.Left != nil && (*got.Left > 0) == (*want.Left > 0)
				})
			}, func() any { return change })
			if change.From != 2 || change.Target != 4 || change.Changer != changer.name || time.Since(change.Began) > 10*time.Minute || time.Since(change.Began) < -time.Minute {
				t.Errorf("%s: %s sees %+v", when, m.name, *change)
			}
		}
	}
	overview := func() *Overview {
		t.Helper()
		conn := c.db.Conn(t)
		defer conn.Close(context.Background()) //nolint:errcheck // nothing depends on it
		o, err := ReadOverview(t.Context(), conn, false)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	see("making", changer.name+", which makes the new slots")
	if o := overview(); o.Set.Target != 4 || o.Set.State != SetMaking || !strings.Contains(o.Set.WaitsFor, "makes the new slots") || o.Set.SwitchLSN != "" || o.Slots[0].Change != SlotOld || o.Slots[0].LeftBytes != nil {
		t.Errorf("making: %+v, %+v", *o.Set, o.Slots)
	}
	close(hold)
	c.changerIn(SetDraining)
	owners := make(map[int]string)
	for _, m := range crew {
		m.mu.Lock()
		for i := range m.leases {
			owners[i] = m.name
		}
		m.mu.Unlock()
	}
	far, none := int64(1), int64(0)
	zero, one := c.base+"_0of2", c.base+"_1of2"
	see("draining", "of WAL left to the switch, and for 1 more", relay.OldSlot{Slot: zero, Owner: owners[0], Left: &far}, relay.OldSlot{Slot: one, Owner: owners[1], Left: &far})
	c.until("the log says for whom", func() bool {
		return strings.Contains(log.String(), "the change of the number of slots takes long") && strings.Contains(log.String(), "the change of the number of slots waits for a slot of this relay")
	}, func() any { return log.String() })

	exec(t, c.db, `UPDATE saga_outbox_relay SET confirmed_lsn = 'FF/0' WHERE slot = $1`, zero)
	see("one is past the switch", one+", owned by "+owners[1], relay.OldSlot{Slot: zero, Owner: owners[0], Left: &none}, relay.OldSlot{Slot: one, Owner: owners[1], Left: &far})
	o := overview()
	by := make(map[string]SlotOverview)
	for _, s := range o.Slots {
		by[s.Slot] = s
	}
	if s := by[zero]; s.Change != SlotOld || s.Owner != owners[0] || s.Taken == nil || s.LeftBytes == nil || *s.LeftBytes != 0 {
		t.Errorf("the one that is past the switch: %+v", s)
	}
	if s := by[one]; s.Change != SlotOld || s.Owner != owners[1] || s.Taken == nil || s.LeftBytes == nil || *s.LeftBytes <= 0 {
		t.Errorf("the one that has not: %+v", s)
	}
	if s := by[c.base+"_3of4"]; s.Change != SlotNew || s.LeftBytes != nil {
		t.Errorf("a new one: %+v", s)
	}
	if text := o.Set.String(); o.Set.SwitchLSN == "" || !strings.Contains(text, "being changed to 4: draining since") || !strings.Contains(text, "it waits for: the old slot "+one) {
		t.Errorf("the overview says %q", text)
	}

	unlock := c.lockSet()
	exec(t, c.db, `UPDATE saga_outbox_relay SET confirmed_lsn = 'FF/0' WHERE slot = $1`, one)
	see("both have stopped", "all old ones have stopped", relay.OldSlot{Slot: zero, Left: &none, Stopped: true}, relay.OldSlot{Slot: one, Left: &none, Stopped: true})
	if s := overview().Slots[0]; s.Change != SlotStopped || s.Owner != "" || s.Taken != nil || s.LeftBytes == nil || *s.LeftBytes != 0 {
		t.Errorf("one that has stopped: %+v", s)
	}
	unlock()
	c.stuck.Store(false)
	c.changed(4)
	for _, m := range crew {
		c.until("it is over, "+m.name, func() bool { return m.store.Changing() == nil }, func() any { return m.store.Changing() })
	}
	if o := overview(); o.Set.WaitsFor != "" || o.Slots[0].Change != "" {
		t.Errorf("after it: %+v", *o)
	}
}

// until waits, and shows what there is when that is in vain.
func (c *crew) until(what string, ok func() bool, shows func() any) {
	c.t.Helper()
	for began := time.Now(); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > 2*time.Minute {
			c.t.Fatalf("%s: not in two minutes: %+v", what, shows())
		}
	}
}

// A divided table's slots are shown before anybody has owned them.
func TestOverviewOfSlotsThatNobodyHasOwned(t *testing.T) {
	t.Parallel()
	c := changing(t, 2)
	if c == nil {
		return
	}
	exec(t, c.db, `INSERT INTO saga_outbox_set (slot, publication, shards) VALUES ('x', 'x', 2)`)
	exec(t, c.db, `INSERT INTO saga_outbox_relay (slot, epoch, owner, shard, shards, released_at) VALUES ('x_1of2', 3, 'relay-1', 1, 2, now())`)
	conn := c.db.Conn(t)
	o, err := ReadOverview(t.Context(), conn, false)
	if err != nil || len(o.Slots) != 2 || o.Slots[0].Slot != "x_0of2" || o.Slots[0].Epoch != 0 || o.Slots[0].Owner != "" || o.Slots[1].Slot != "x_1of2" || o.Slots[1].Epoch != 3 {
		t.Errorf("%+v, %v", o, err)
	}
}
