package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The processes whose CPU is counted, in groups.
const (
	ofContestant = "contestant"
	ofBroker     = "broker"
	ofWalsender  = "walsender"
	ofBackends   = "backends" // of PostgreSQL, for clients other than us
	ofServer     = "server"   // PostgreSQL's own: checkpointer, writers, vacuum
)

var groups = []string{ofWalsender, ofBackends, ofServer, ofContestant, ofBroker}

// tick is the unit of /proc/PID/stat's times: proc(5), USER_HZ.
const tick = 100

// meter adds up the CPU of groups of processes, which come and go.
type meter struct {
	roots map[int]string // process: the group of it and its descendants
	ours  map[int]bool   // backends of our own connections

	mu    sync.Mutex // guards what follows
	first map[int]float64
	last  map[int]float64
	group map[int]string

	done  chan struct{}
	ended chan struct{}
}

// measure starts one. Processes that run already count from now on.
func (t *site) measure() *meter {
	m := &meter{
		roots: map[int]string{t.postgres.PostmasterPID(): ofServer}, ours: map[int]bool{},
		first: map[int]float64{}, last: map[int]float64{}, group: map[int]string{},
		done: make(chan struct{}), ended: make(chan struct{}),
	}
	if t.c.broker == "kafka" {
		m.roots[t.kafka.PID()] = ofBroker
	} else {
		m.roots[t.rabbit.PID()] = ofBroker
	}
	m.ours[int(t.conn.PgConn().PID())], m.ours[int(t.admin.PgConn().PID())] = true, true
	m.look(true)
	go func() {
		defer close(m.ended)
		for {
			select {
			case <-m.done:
				return
			case <-time.After(200 * time.Millisecond):
				m.look(false)
			}
		}
	}()
	return m
}

// add counts a process that was just started, and its descendants.
func (m *meter) add(pid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.roots[pid] = ofContestant
}

// ignore leaves out a backend of our own.
func (m *meter) ignore(backend int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ours[backend] = true
}

// rebase counts what runs from now on only, also of the contestant.
func (m *meter) rebase() { m.look(true) }

func (m *meter) stop() { close(m.done); <-m.ended }

// used is the CPU seconds of each group since measure.
func (m *meter) used() map[string]float64 {
	m.look(false)
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := make(map[string]float64)
	for pid, cpu := range m.last {
		if group := m.group[pid]; group != "" && !m.ours[pid] {
			sum[group] += cpu - m.first[pid]
		}
	}
	return sum
}

// look reads all processes once.
func (m *meter) look(before bool) {
	all := processes()
	m.mu.Lock()
	defer m.mu.Unlock()
	for pid, p := range all {
		group := ""
		for at, depth := pid, 0; at > 1 && depth < 8 && group == ""; depth++ {
			group = m.roots[at]
			at = all[at].parent
		}
		if group == "" {
			continue
		}
		if group == ofServer {
			if m.group[pid] == "" || m.group[pid] == ofServer {
				m.group[pid] = backendGroup(pid)
			}
		} else {
			m.group[pid] = group
		}
		if before {
			m.first[pid] = p.cpu
		}
		m.last[pid] = max(m.last[pid], p.cpu)
	}
}

// backendGroup tells PostgreSQL's processes apart by their titles.
func backendGroup(pid int) string {
	title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may have ended
	return groupOfTitle(strings.TrimRight(string(title), "\x00 "))
}

func groupOfTitle(title string) string {
	what, ok := strings.CutPrefix(title, "postgres: ")
	switch {
	case !ok:
		return ofServer
	case strings.HasPrefix(what, "walsender "):
		return ofWalsender
	case strings.Contains(what, "("): // user database address(port) state
		return ofBackends
	}
	return ofServer
}

type procStat struct {
	parent int
	cpu    float64
}

func processes() map[int]procStat {
	paths, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is a good one
	all := make(map[int]procStat, len(paths))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			if p, ok := parseStat(string(text)); ok {
				all[pid] = p
			}
		}
	}
	return all
}

// parseStat reads a line of /proc/PID/stat: parent, utime and stime are fields 4, 14 and 15, and
// the name before them may have blanks and parentheses.
func parseStat(text string) (procStat, bool) {
	i := strings.LastIndex(text, ") ")
	if i < 0 {
		return procStat{}, false
	}
	f := strings.Fields(text[i+2:])
	if len(f) < 13 {
		return procStat{}, false
	}
	parent, err1 := strconv.Atoi(f[1])
	user, err2 := strconv.Atoi(f[11])
	system, err3 := strconv.Atoi(f[12])
	return procStat{parent, float64(user+system) / tick}, err1 == nil && err2 == nil && err3 == nil
}

// peakMemory is the most that a process and its descendants had in memory, each at its own time.
func peakMemory(root int) (bytes float64) {
	all := processes()
	for pid := range maps.Keys(all) {
		for at, depth := pid, 0; at > 1 && depth < 8; depth++ {
			if at == root {
				status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // it may have ended
				bytes += parsePeak(string(status))
				break
			}
			at = all[at].parent
		}
	}
	return bytes
}

// parsePeak finds VmHWM in /proc/PID/status.
func parsePeak(status string) float64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if f := strings.Fields(rest); len(f) == 2 {
				kilobytes, _ := strconv.Atoi(f[0]) // the kernel's
				return float64(kilobytes) * 1024
			}
		}
	}
	return 0
}
