package browser

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// Four slots over three relays, and a change of their number that cannot go on: every page has it,
// and for whom it waits, until it is through.
func TestSeveralSlots(t *testing.T) {
	s := newSite(t)
	var relays []*running
	for i := range 3 {
		relays = append(relays, s.relay(fmt.Sprint("relay-", i), "RELAY_SHARDS=4"))
	}
	for _, r := range relays {
		s.waitReady(r)
	}
	change := func(n string) {
		t.Helper()
		cmd := exec.Command(product.Binary(t), "migrate", "--shards", n, "--no-wait")
		cmd.Env = []string{"DATABASE_URL=" + s.db.DSN, "RELAY_SLOT=" + s.name}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("migrate --shards %s: %v\n%s", n, err, out)
		}
	}
	s.db.Until(t, `SELECT count(*) = 4 FROM pg_replication_slots WHERE active AND slot_name LIKE $1 || '_%of4'`, s.name)
	s.db.Until(t, `SELECT count(DISTINCT owner) = 3 FROM saga_outbox_relay WHERE released_at IS NULL`)
	s.insert("OrderCreated", 100)
	s.db.Until(t, `SELECT count(*) = 0 FROM saga_outbox WHERE status <> 'sent'`)
	for i, r := range relays {
		b := newTab(t)
		b.look(1280, 900, "light")
		b.do(chromedp.Navigate(r.url + "/"))
		b.waitText("verdict", "of 4 slots", "all well")
		b.waitText("slots", s.name+"_0of4", s.name+"_3of4", "relay-0", "relay-1", "relay-2", "Owned for")
		b.keep(fmt.Sprint("shards-", i))
	}

	s.away() // so no old slot gets to the switch
	s.insert("OrderCreated", 100)
	change("2")
	b := newTab(t)
	b.do(chromedp.Navigate(relays[0].url + "/"))
	for _, v := range []struct {
		name   string
		width  int
		scheme string
	}{{"desktop", 1280, "light"}, {"phone", 390, "dark"}} {
		b.look(v.width, 900, v.scheme)
		b.waitText("slots", "From 4 to 2 slots", "draining", "of WAL left to the switch, and for 3 more", "Left to the switch", "delivering")
		b.wantFits()
		for _, low := range js[[]string](b, contrast) {
			t.Errorf("%s: too little contrast: %s", v.name, low)
		}
		for _, missing := range js[[]string](b, basics) {
			t.Errorf("%s: %s", v.name, missing)
		}
		b.keep("shards-change-" + v.name)
	}
	for _, r := range relays[1:] {
		other := newTab(t)
		other.look(1280, 900, "light")
		other.do(chromedp.Navigate(r.url + "/"))
		other.waitText("slots", "From 4 to 2 slots")
	}
	b.wantClean(relays[0].url)

	s.rabbit.Thaw()
	s.rabbit.Cut()
	b = newTab(t) // the one before is in the background by now, and asks nothing
	b.look(1280, 900, "light")
	b.do(chromedp.Navigate(relays[0].url + "/"))
	b.waitText("changes", "slots changed", "from 4 to 2")
	b.waitText("slots", s.name+"_1of2")
	b.wantClean(relays[0].url)
}
