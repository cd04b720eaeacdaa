package browser

import (
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/sagaz-relay/relay/internal/checks/product"
)

var (
	//go:embed contrast.js
	contrast string
	//go:embed basics.js
	basics string
)

// tab is one page, with everything that went wrong in it.
type tab struct {
	t   testing.TB
	ctx context.Context

	mu       sync.Mutex // guards what follows
	wrong    []string
	requests []string
}

// closeBrowser ends the browser, if a test has started it.
var closeBrowser = func() {}

// browser is the one that all tests open their tabs in.
var browser = sync.OnceValues(func() (context.Context, error) {
	profile, err := os.MkdirTemp("", "sagaz-browser-")
	if err != nil {
		return nil, err
	}
	// The flags keep the browser from everything but what it is told; a container has neither a
	// sandbox of its own nor much /dev/shm.
	allocator, end := chromedp.NewExecAllocator(context.Background(),
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.NoSandbox, chromedp.Headless, chromedp.DisableGPU, chromedp.UserDataDir(profile),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("hide-scrollbars", false), chromedp.Flag("lang", "en-GB"),
		chromedp.WSURLReadTimeout(product.Patience))
	ctx, _ := chromedp.NewContext(allocator)
	closeBrowser = func() {
		_ = chromedp.Cancel(ctx) // closes it and waits
		end()
		_ = os.RemoveAll(profile)
	}
	return ctx, chromedp.Run(ctx)
})

func newTab(t testing.TB) *tab {
	t.Helper()
	in, err := browser()
	if err != nil {
		t.Fatal(err)
	}
	ctx, _ := chromedp.NewContext(in)
	tb := &tab{t: t, ctx: ctx}
	t.Cleanup(func() { _ = chromedp.Cancel(ctx) })
	chromedp.ListenTarget(ctx, func(ev any) {
		switch e := ev.(type) {
		case *network.EventRequestWillBeSent:
			tb.note(&tb.requests, e.Request.URL)
		case *runtime.EventExceptionThrown:
			tb.note(&tb.wrong, "exception: "+e.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
				var words []string
				for _, a := range e.Args {
					words = append(words, string(a.Value)+a.Description)
				}
				tb.note(&tb.wrong, "console: "+strings.Join(words, " "))
			}
		case *log.EventEntryAdded: // a violated policy, a request in vain
			tb.note(&tb.wrong, fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL))
		}
	})
	tb.do(network.Enable(), log.Enable(), runtime.Enable())
	return tb
}

func (b *tab) note(list *[]string, what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*list = append(*list, what)
}

func (b *tab) do(actions ...chromedp.Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, product.Patience)
	defer cancel()
	if chromedp.FromContext(b.ctx).Target == nil {
		// The first one opens the tab, which must not end with a time limit.
		if err := chromedp.Run(b.ctx); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := chromedp.Run(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// js evaluates an expression.
func js[T any](b *tab, expression string) T {
	b.t.Helper()
	var v T
	b.do(chromedp.Evaluate(expression, &v))
	return v
}

// text is what a person can read of an element.
func (b *tab) text(id string) string {
	b.t.Helper()
	return js[string](b, fmt.Sprintf("document.getElementById(%q).innerText", id))
}

// waitText waits until the element's text contains all the words.
func (b *tab) waitText(id string, words ...string) {
	b.t.Helper()
	deadline := time.Now().Add(product.Patience)
	for {
		got := b.text(id)
		missing := ""
		for _, w := range words {
			if !strings.Contains(got, w) {
				missing = w
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("#%s does not say %q within %s; it says\n%s", id, missing, product.Patience, got)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// look sets the size of the screen and the preferred colours.
func (b *tab) look(width, height int, scheme string) {
	b.t.Helper()
	b.do(
		emulation.SetDeviceMetricsOverride(int64(width), int64(height), 1, width < 600),
		emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
	)
}

// keep writes a screenshot of the whole page where SAGAZ_SCREENSHOTS says, and checks that there is
// something on it.
func (b *tab) keep(name string) {
	b.t.Helper()
	var png []byte
	b.do(chromedp.FullScreenshot(&png, 100))
	if len(png) < 10_000 {
		b.t.Errorf("the screenshot %s has %d bytes: nothing is on it", name, len(png))
	}
	if dir := os.Getenv("SAGAZ_SCREENSHOTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
}

// wantClean fails for everything that went wrong so far, and for requests to anybody but the relay.
func (b *tab) wantClean(origin string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.wrong {
		b.t.Error(w)
	}
	for _, r := range b.requests {
		if !strings.HasPrefix(r, origin+"/") {
			b.t.Errorf("the page asks %s", r)
		}
	}
	if len(b.requests) < 4 {
		b.t.Errorf("only %d requests were seen: %v", len(b.requests), b.requests)
	}
}

// wantFits fails when the page is wider than the screen, and says what sticks out.
func (b *tab) wantFits() {
	b.t.Helper()
	wide := js[[]string](b, `(() => {
		const w = document.documentElement.clientWidth;
		if (document.documentElement.scrollWidth <= w) return [];
		return ["the page", ...[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > w + 1 && !e.closest(".unseen")).slice(0, 5).map(e => e.outerHTML.slice(0, 150))];
	})()`)
	for _, e := range wide {
		b.t.Errorf("wider than the screen: %s", e)
	}
}

// answers puts a body in the place of status.json.
func (b *tab) answers(body string) {
	b.t.Helper()
	chromedp.ListenTarget(b.ctx, func(ev any) {
		e, ok := ev.(*fetch.EventRequestPaused)
		if !ok {
			return
		}
		go func() { // a listener must not wait; it ends with the browser
			ctx := cdp.WithExecutor(b.ctx, chromedp.FromContext(b.ctx).Target)
			_ = fetch.FulfillRequest(e.RequestID, 200).WithResponseHeaders([]*fetch.HeaderEntry{{Name: "Content-Type", Value: "application/json"}}).
				WithBody(base64.StdEncoding.EncodeToString([]byte(body))).Do(ctx)
		}()
	})
	b.do(fetch.Enable().WithPatterns([]*fetch.RequestPattern{{URLPattern: "*/status.json"}}))
}
