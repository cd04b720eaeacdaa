package pgserver

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// proc is a process; its start time distinguishes it from a later one with the same number.
type proc struct {
	pid     int
	started string
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(pid int) []proc {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var children []proc
	for _, entry := range entries {
		id, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if _, parent, started := stat(id); parent == pid {
			children = append(children, proc{id, started})
		}
	}
	return children
}

func (p proc) alive() bool {
	state, _, started := stat(p.pid)
	return started == p.started && state != "Z" // a zombie has no resources any more
}

func (p proc) kill() {
	if p.alive() {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// stat reads the fields state, ppid and starttime, see proc_pid_stat(5); all are zero when there is
// no such process.
func stat(pid int) (state string, parent int, started string) {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", 0, ""
	}
	// The second field is the program's name in parentheses, and may have any characters.
	fields := strings.Fields(string(line[strings.LastIndexByte(string(line), ')')+1:]))
	if len(fields) < 20 {
		return "", 0, ""
	}
	parent, _ = strconv.Atoi(fields[1])
	return fields[0], parent, fields[19]
}
