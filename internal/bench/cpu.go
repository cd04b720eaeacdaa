package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sagaz-relay/relay/relay"
	"github.com/sagaz-relay/relay/relay/store"
)

// watchWalsender finds the process that serves a slot and returns a function for the CPU seconds
// that it has used since, 0 when the server is not on this machine.
func watchWalsender(ctx context.Context, conn *pgx.Conn, slot string) func() float64 {
	pid := 0
	for range 200 {
		_ = conn.QueryRow(ctx, `SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`, slot).Scan(&pid)
		if pid != 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	last := serverCPU(pid)
	done := make(chan struct{})
	result := make(chan float64, 1)
	go func() { // pg_recvlogical is gone with its walsender when it is asked
		from := last
		for {
			select {
			case <-done:
				result <- max(0, last-from)
				return
			case <-time.After(50 * time.Millisecond):
				if now := serverCPU(pid); now > 0 {
					last = now
				}
			}
		}
	}()
	return func() float64 { close(done); return <-result }
}

// serverCPU is the CPU seconds of a local postgres process. A server elsewhere has the same numbers
// for other processes.
func serverCPU(pid int) float64 {
	if !isPostgres(pid) {
		return 0
	}
	return cpuOf(pid)
}

// cpuOf is the CPU seconds that a process's threads have used, which Linux counts in nanoseconds
// (the first number of schedstat); 0 where it does not.
func cpuOf(pid int) (seconds float64) {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, thread := range threads {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, thread.Name()))
		used, _, _ := strings.Cut(string(text), " ")
		nanos, _ := strconv.ParseInt(used, 10, 64)
		seconds += float64(nanos) / 1e9
	}
	return seconds
}

// isPostgres reports whether a process of this machine is a server's: the number may be one of
// another machine.
func isPostgres(pid int) bool {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.HasPrefix(string(name), "postgres")
}

// watchBackends looks at the server's processes that serve the set's slots, and that write marks,
// which change with the slots' owners. It returns a function for the CPU seconds that they have
// used since; 0 when the server is not on this machine.
func (b *database) watchBackends(ctx context.Context, set relay.Set) (func() (walsenders, marks float64), error) {
	const backends = `SELECT active_pid, false FROM pg_replication_slots WHERE starts_with(slot_name, $1) AND active
		UNION ALL SELECT pid, true FROM pg_stat_activity WHERE datname = current_database() AND starts_with(application_name, 'sagaz-relay marks')`
	conn, err := pgx.Connect(ctx, b.dsn)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", store.ConnectCause(err))
	}
	type backend struct {
		PID    int
		Writes bool
	}
	done := make(chan struct{})
	last := make(map[backend]float64)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // read only
		for {
			rows, _ := conn.Query(ctx, backends, set.Slot)
			all, _ := pgx.CollectRows(rows, pgx.RowToStructByPos[backend]) // one look more or less
			for _, one := range all {
				last[one] = max(last[one], serverCPU(one.PID))
			}
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() (walsenders, marks float64) {
		close(done)
		<-ended
		for one, cpu := range last {
			if one.Writes {
				marks += cpu
			} else {
				walsenders += cpu
			}
		}
		return walsenders, marks
	}, nil
}
