package browser

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/sagaz-relay/relay/internal/checks/product"
	"github.com/sagaz-relay/relay/internal/testbed/brokertest"
)

// Two sinks of one kind: each is there with its name and its kind, and only the one whose broker is
// away is down. In the ledger is what it did not take, under its name. A sink that is called as its
// kind is has its name alone.
func TestNamedSinks(t *testing.T) {
	s := newSite(t)
	direct := brokertest.RabbitMQ(t).URL
	r := s.relay("relay-a", "BROKER_TYPE=kafka", "RABBITMQ_URL=", "RABBITMQ_EXCHANGE=", "RELAY_SINK_ISOLATION=2s", "RELAY_SINKS=orders-mq,audit-mq",
		"RELAY_SINK_ORDERS_MQ_KIND=rabbitmq", "RELAY_SINK_ORDERS_MQ_URL="+direct, "RELAY_SINK_ORDERS_MQ_EXCHANGE="+s.name,
		"RELAY_SINK_AUDIT_MQ_KIND=rabbitmq", "RELAY_SINK_AUDIT_MQ_URL="+s.rabbit.DSN, "RELAY_SINK_AUDIT_MQ_EXCHANGE="+s.name, "RELAY_SINK_AUDIT_MQ_CONFIRM_TIMEOUT=1s")
	s.waitReady(r)
	b := newTab(t)
	b.look(1280, 900, "light")
	b.do(chromedp.Navigate(r.url + "/"))
	s.insert("OrderCreated", 20)
	row := func(i int) string {
		return js[string](b, fmt.Sprintf(`document.querySelectorAll("#sinks tbody tr")[%d]?.innerText.replace(/\s+/g, " ") || ""`, i))
	}
	wants := func(wanted ...string) {
		t.Helper()
		product.Until(t, fmt.Sprintf("the page has %q", wanted), func() bool {
			for i, want := range wanted {
				if !strings.HasPrefix(row(i), want) {
					return false
				}
			}
			return true
		})
	}
	wants("kafka up", "orders-mq rabbitmq up", "audit-mq rabbitmq up")
	s.away()
	s.insert("OrderCreated", 20)
	wants("kafka up", "orders-mq rabbitmq up", "audit-mq rabbitmq isolated")
	b.waitText("verdict", "sink audit-mq is isolated")
	b.waitText("ledger", "audit-mq", "sink_down")
	b.waitText("changes", "sink isolated", "audit-mq")
	if text := js[string](b, `document.getElementById("ledger").innerText`); strings.Contains(text, "orders-mq") {
		t.Errorf("the ledger names the sink that takes everything: %s", text)
	}
	for _, v := range []struct {
		name   string
		width  int
		scheme string
	}{{"desktop", 1280, "light"}, {"phone", 390, "dark"}} {
		b.look(v.width, 900, v.scheme)
		b.wantFits()
		for _, low := range js[[]string](b, contrast) {
			t.Errorf("%s: too little contrast: %s", v.name, low)
		}
		b.keep("named-sinks-" + v.name)
	}
	b.wantClean(r.url)
}
