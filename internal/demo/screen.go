package demo

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	terminal "golang.org/x/term"

	"github.com/sagaz-relay/relay/internal/term"
)

// screen writes lines, and on a terminal one live line below them that is written over. One
// goroutine uses it.
type screen struct {
	w      io.Writer
	width  func() int // columns, now
	live   bool       // a terminal that can go back to the start of a line
	color  bool
	marks  [2]string // for what did not hold, and for what did
	onLine bool      // the live line is there
}

const widthOfNoTerminal = 120

func newScreen(w io.Writer) *screen {
	s := &screen{w: w, width: func() int { return widthOfNoTerminal }, marks: [2]string{"✗", "✓"}}
	f, ok := w.(*os.File)
	if !ok || !terminal.IsTerminal(int(f.Fd())) {
		return s
	}
	s.width = func() int {
		if columns, _, err := terminal.GetSize(int(f.Fd())); err == nil && columns > 0 {
			return columns
		}
		return 80
	}
	s.live = os.Getenv("TERM") != "dumb"
	s.color = s.live && os.Getenv("NO_COLOR") == ""
	if !utf8Locale() {
		s.marks = [2]string{"FAILED", "ok"}
	}
	return s
}

// utf8Locale looks at the variables of the locale, in their order of precedence.
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if value := strings.ToUpper(os.Getenv(name)); value != "" {
			return strings.Contains(value, "UTF-8") || strings.Contains(value, "UTF8")
		}
	}
	return false
}

// printf writes a line.
func (s *screen) printf(format string, args ...any) {
	s.clearLive()
	fmt.Fprintf(s.w, format+"\n", args...)
}

// Write takes lines from elsewhere and indents them.
func (s *screen) Write(text []byte) (int, error) {
	for line := range strings.Lines(string(text)) {
		s.printf("  %s", strings.TrimRight(line, "\n"))
	}
	return len(text), nil
}

const itemColumns = 31

// item writes a marked line of two columns, the second below the first where the terminal is
// narrow.
func (s *screen) item(good bool, what, detail string) {
	mark, color := s.marks[0], "31"
	if good {
		mark, color = s.marks[1], "32"
	}
	indent := utf8.RuneCountInString(mark) + 3
	if s.color {
		mark = "\x1b[" + color + "m" + mark + "\x1b[0m"
	}
	if detail == "" {
		s.printf("  %s %s", mark, what)
		return
	}
	head := fmt.Sprintf("  %s %-*s", mark, itemColumns, what)
	width := s.width()
	if indent+max(itemColumns, utf8.RuneCountInString(what))+2+utf8.RuneCountInString(detail) <= width {
		s.printf("%s  %s", head, detail)
		return
	}
	s.printf("%s", strings.TrimRight(head, " "))
	for _, line := range wrap(detail, max(20, width-indent-2)) {
		s.printf("%*s%s", indent+2, "", line)
	}
}

// wrap breaks text between words into lines of at most so many columns, where the words allow it.
func wrap(text string, columns int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// show writes over the live line with the first of the texts that fits, the last one cut off if
// need be. Without a terminal it writes a line.
func (s *screen) show(texts ...string) {
	if !s.live {
		s.printf("%s", strings.TrimRight(texts[0], " "))
		return
	}
	room := s.width() - 1 // the last column would wrap on some terminals
	text := texts[len(texts)-1]
	for _, t := range texts {
		if utf8.RuneCountInString(t) <= room {
			text = t
			break
		}
	}
	if runes := []rune(text); len(runes) > room {
		text = string(runes[:max(0, room)])
	}
	fmt.Fprintf(s.w, "\r%s\x1b[K", text)
	s.onLine = true
}

func (s *screen) clearLive() {
	if s.onLine {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.onLine = false
	}
}

// endLive leaves the live line as it is and goes on below it.
func (s *screen) endLive() {
	if s.onLine {
		fmt.Fprintln(s.w)
		s.onLine = false
	}
}

// progress shows how the load goes, twice a second on a terminal and every second elsewhere.
type progress struct {
	screen    *screen
	committed func() int // events
	watch     *stopwatch
	tick      *time.Ticker

	at      time.Duration // of the last look
	arrived int
	times   durations
}

func newProgress(s *screen, committed func() int, watch *stopwatch) *progress {
	every := time.Second
	if s.live {
		every /= 2
	}
	return &progress{screen: s, committed: committed, watch: watch, tick: time.NewTicker(every)}
}

func (p *progress) close() {
	p.tick.Stop()
	p.screen.endLive()
}

// show writes the progress line: counts since the start, rate and times since the last line.
func (p *progress) show(elapsed time.Duration, lag int64) {
	arrived, times := p.watch.look()
	recent := times.since(&p.times)
	rate := float64(arrived-p.arrived) / (elapsed - p.at).Seconds()
	p.at, p.arrived, p.times = elapsed, arrived, times

	behind := "?"
	if lag >= 0 {
		behind = term.Size(&lag)
	}
	p50, p99 := "-", "-"
	if recent.n > 0 {
		p50, p99 = millis(recent.quantile(0.50)), millis(recent.quantile(0.99))
	}
	clock := fmt.Sprintf("%3.0f s", elapsed.Seconds())
	in, out, per := thousands(p.committed()), thousands(arrived), thousands(int(rate))
	// Widths are fixed, so that the line does not jump, and each form fits its terminal: 120, 96,
	// 80, 56 columns, fewer.
	p.screen.show(
		fmt.Sprintf("%s   committed %-9s delivered %-9s %6s events/s   p50 %7s  p99 %7s   slot lag %-7s", clock, in, out, per, p50, p99, behind),
		fmt.Sprintf("%s  committed %-7s  delivered %-7s  %6s/s  p50 %7s  p99 %7s  lag %-7s", clock, in, out, per, p50, p99, behind),
		fmt.Sprintf("%s  in %-7s  out %-7s  %6s/s  p50 %7s  p99 %7s  lag %-7s", clock, in, out, per, p50, p99, behind),
		fmt.Sprintf("%s  in %-7s  out %-7s  %6s/s  p99 %7s", clock, in, out, per, p99),
		fmt.Sprintf("%s  in %s  out %s", clock, in, out),
	)
}

func millis(d time.Duration) string {
	if d < 100*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// thousands writes 1234567 as 1,234,567.
func thousands(n int) string {
	digits := strconv.Itoa(n)
	var b strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 && digits[i-1] != '-' {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	return b.String()
}
