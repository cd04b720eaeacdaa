package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The listener that RUNBOOKS.md gives to those who want to hear of failed compensations does that
// with the library that is pinned: the types of its events are those for which RELAY_SAGA_RULES has
// default rules.
func TestRunbookListener(t *testing.T) {
	text, err := os.ReadFile("../../../monitoring/RUNBOOKS.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```python\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(found) != 1 {
		t.Fatalf("RUNBOOKS.md has %d blocks of Python, want the listener", len(found))
	}
	script := filepath.Join(t.TempDir(), "saga.py")
	if err := os.WriteFile(script, []byte(found[0][1]+`
import asyncio
from sagaz import Saga, action, compensate


ids = set()


class Storage:
    async def insert(self, event, connection=None):
        print("event", event.event_type)
        ids.add(event.saga_id)


class OrderSaga(Saga):
    saga_name = "order"
    listeners = [ReportsFailedCompensations(storage=Storage())]

    @action("reserve")
    async def reserve(self, ctx):
        return {}

    @compensate("reserve")
    async def unreserve(self, ctx):
        raise RuntimeError("the warehouse refuses")

    @action("bill", depends_on=["reserve"])
    async def bill(self, ctx):
        return {}

    @compensate("bill")
    async def unbill(self, ctx):
        pass

    @action("pay", depends_on=["bill"], max_retries=0)
    async def pay(self, ctx):
        raise RuntimeError("no money")


try:
    asyncio.run(OrderSaga().run({}))
except RuntimeError as e:
    print("failed", e, len(ids))
`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), python(t), script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := regexp.MustCompile(`(?m)^(?:event|failed) .*$`).FindAllString(string(out), -1)
	want := []string{
		"event order.reserve.success", "event order.bill.success", "event order.pay.failed", "event order.bill.compensated",
		// of one saga
		"event order.failed", "event order.reserve.compensation_failed", "failed no money 1",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s\nall:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), out)
	}
}
