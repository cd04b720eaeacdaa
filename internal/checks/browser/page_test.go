package browser

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

// The page shows the state, and what happens to it, without a reload.
func TestLive(t *testing.T) {
	s := newSite(t)
	r := s.relay("relay-a")
	s.waitReady(r)
	b := newTab(t)
	b.look(1280, 900, "light")
	b.do(chromedp.Navigate(r.url + "/"))
	b.waitText("verdict", "Relaying", "all well", "Owns "+s.name)
	b.waitText("slots", s.name, "streaming", "relay-a", "Epoch", "WAL retained", "reserved")
	b.waitText("sinks", "kafka", "rabbitmq", "up")
	b.waitText("ledger", "Empty")
	b.waitText("changes", "lease taken", "streaming")
	b.waitText("build", "Version ")
	b.do(chromedp.Evaluate("window.sameDocument = true", nil))

	s.insert("OrderCreated", 200)
	b.waitText("slots", "200 marked")
	b.waitText("sinks", "/s")

	back := s.away()
	s.insert("OrderCreated", 20)
	began := time.Now()
	b.waitText("sinks", "down")
	t.Logf("the page said so after %s", time.Since(began).Round(time.Millisecond))
	b.waitText("verdict", "degraded", "sink rabbitmq is down")
	b.waitText("changes", "sink down")
	b.waitText("figures", "20 in flight")
	if got := js[string](b, "document.getElementById('announce').textContent"); !strings.Contains(got, "degraded") {
		t.Errorf("a screen reader is told %q", got)
	}
	if got := js[string](b, "document.title"); !strings.HasPrefix(got, "degraded · ") {
		t.Errorf("the title is %q", got)
	}
	back()
	b.waitText("verdict", "all well")
	b.waitText("changes", "sink up")

	s.insert("OrderAudited", 3) // no queue is bound for it
	b.waitText("ledger", "dead letter", "unroutable", "rabbitmq")
	b.waitText("verdict", "3 dead letters wait for a person")
	b.waitText("changes", "dead letter")
	if !js[bool](b, "window.sameDocument === true") {
		t.Error("the page was loaded again")
	}
	if got := js[string](b, "document.documentElement.outerHTML"); strings.Contains(got, "payload-marker") || strings.Contains(got, "guest:guest") {
		t.Error("a payload or a password is on the page")
	}
	b.wantClean(r.url)

	r.Stop()
	b.waitText("live", "no answer since")
}

// One relay, seen in all ways: nothing sticks out, everything can be read, and heard.
func TestLooks(t *testing.T) {
	s := newSite(t)
	r := s.relay("relay-7c9d8-x2x4q")
	s.waitReady(r)
	s.insert("OrderCreated", 300)
	s.insert("OrderAudited", 2)
	b := newTab(t)
	b.look(1280, 900, "light")
	b.do(chromedp.Navigate(r.url + "/"))
	b.waitText("ledger", "dead letter")
	b.waitText("verdict", "Relaying") // the server may be long in making the slot; until then it polls
	s.away()
	s.insert("OrderCreated", 40)
	b.waitText("sinks", "down")
	for _, v := range []struct {
		name   string
		width  int
		scheme string
	}{
		{"desktop-light", 1280, "light"}, {"desktop-dark", 1280, "dark"}, {"tablet-light", 768, "light"}, {"phone-light", 360, "light"}, {"phone-dark", 360, "dark"},
	} {
		t.Run(v.name, func(t *testing.T) {
			b.t = t
			defer func() { b.t = s.t }()
			b.look(v.width, 900, v.scheme)
			b.wantFits()
			for _, low := range js[[]string](b, contrast) {
				t.Errorf("too little contrast: %s", low)
			}
			b.keep(v.name)
		})
	}
	t.Run("Accessible", func(t *testing.T) {
		for _, width := range []int{1280, 360} {
			b.look(width, 900, "light")
			for _, missing := range js[[]string](b, basics) {
				t.Errorf("at %d px: %s", width, missing)
			}
		}
	})
	t.Run("ScreenReader", func(t *testing.T) { // what the browser reports of the tables that a phone shows as lists
		b.look(360, 900, "light")
		roles := js[[]string](b, `[...document.querySelectorAll("#sinks [role]")].filter(e => getComputedStyle(e).display !== "none").map(e => e.getAttribute("role"))`)
		for _, want := range []string{"table", "row", "columnheader", "rowheader", "cell"} {
			if !strings.Contains(strings.Join(roles, " ")+" ", want+" ") {
				t.Errorf("nothing has the role %s: %v", want, roles)
			}
		}
	})
	t.Run("Keyboard", func(t *testing.T) {
		b.do(chromedp.Navigate(r.url + "/"))
		b.waitText("verdict", "Relaying")
		press := func(key string, code int64) {
			b.do(input.DispatchKeyEvent(input.KeyDown).WithKey(key).WithCode(key).WithWindowsVirtualKeyCode(code), input.DispatchKeyEvent(input.KeyUp).WithKey(key).WithCode(key).WithWindowsVirtualKeyCode(code))
		}
		press("Tab", 9)
		if got := js[string](b, "document.activeElement.textContent"); got != "Skip to the state" {
			t.Errorf("the first stop is %q", got)
		}
		if got := js[float64](b, "document.activeElement.getBoundingClientRect().top"); got < 0 {
			t.Errorf("the focused link is out of sight, at %v", got)
		}
		press("Tab", 9)
		focused := js[string](b, "document.activeElement.textContent")
		b.waitText("live", "live") // and some answers later
		time.Sleep(5 * time.Second)
		if got := js[string](b, "document.activeElement.textContent"); got != focused || focused == "" {
			t.Errorf("the focus was on %q, and is on %q after an update", focused, got)
		}
	})
	t.Run("ReducedMotion", func(t *testing.T) {
		const moving = `getComputedStyle(document.getElementById("live"), "::before").animationName`
		if got := js[string](b, moving); got != "beat" {
			t.Errorf("with motion: %q", got)
		}
		b.do(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-reduced-motion", Value: "reduce"}}))
		if got := js[string](b, moving); got != "none" {
			t.Errorf("without: %q", got)
		}
	})
	b.wantClean(r.url)
}

// What rows and brokers say stays text, however it looks.
func TestHostile(t *testing.T) {
	s := newSite(t)
	r := s.relay("relay-a")
	var status map[string]any
	if err := json.Unmarshal(product.Read(t, "relay/admin/testdata/status.json"), &status); err != nil {
		t.Fatal(err)
	}
	hostile := []string{
		`<script>window.hacked = "script"</script>`, `<img src=x onerror="window.hacked='img'">`, `"><svg onload="window.hacked='svg'">`, `javascript:window.hacked='url'`,
		`{{constructor.constructor("window.hacked='template'")()}}`, "\u202Egnp.exe", strings.Repeat("x", 5000), strings.Repeat("very long ", 500),
	}
	// Every string of the answer, but times and what selects a style, becomes hostile in turn.
	var poison func(v any, with string) any
	poison = func(v any, with string) any {
		switch x := v.(type) {
		case map[string]any:
			out := make(map[string]any)
			for k, v := range x {
				if k == "slots" && fmt.Sprintf("%T", v) == "map[string]interface {}" || k == "history" {
					out[k] = v
				} else {
					out[k] = poison(v, with)
				}
			}
			return out
		case []any:
			out := make([]any, len(x))
			for i := range x {
				out[i] = poison(x[i], with)
			}
			return out
		case string:
			if _, err := time.Parse(time.RFC3339, x); err == nil {
				return x
			}
			return x + with
		}
		return v
	}
	for i, with := range hostile {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			body, err := json.Marshal(poison(status, with))
			if err != nil {
				t.Fatal(err)
			}
			b := newTab(t)
			b.look(360, 900, "light")
			b.answers(string(body))
			b.do(chromedp.Navigate(r.url + "/"))
			b.waitText("sinks", "kafka")
			b.waitText("changes", "sink down")
			time.Sleep(300 * time.Millisecond) // an image would fail, a script run
			if got := js[string](b, "String(window.hacked)"); got != "undefined" {
				t.Errorf("it ran, by %s", got)
			}
			if n := js[int](b, `document.querySelectorAll("main script, main img, main [onload], main [onerror], main a").length`); n != 0 {
				t.Errorf("%d elements were made of it", n)
			}
			if got := b.text("sinks"); !strings.Contains(strings.Join(strings.Fields(got), ""), strings.Join(strings.Fields(with), "")) {
				t.Errorf("it is not shown as it is: %.200q", got)
			}
			b.wantFits()
			b.wantClean(r.url)
			b.keep(fmt.Sprint("hostile-", i))
		})
	}
}
