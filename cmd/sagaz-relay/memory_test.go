package main

import (
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/sagaz-relay/relay/relay/watch"
)

func TestMemoryOf(t *testing.T) {
	const meminfo = "MemTotal:        8000000 kB\nMemFree:          100000 kB\n"
	for name, tt := range map[string]struct {
		files map[string]string
		want  uint64
	}{
		"NothingTells": {nil, 0},
		"Machine":      {map[string]string{"proc/meminfo": meminfo}, 8000000 << 10},
		"Container": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "536870912\n",
		}, 512 << 20},
		"ContainerWithoutLimit": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n",
		}, 8000000 << 10},
		"ServiceInASlice": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/relay.slice/relay.service\n",
			"sys/fs/cgroup/relay.slice/relay.service/memory.max": "max\n", "sys/fs/cgroup/relay.slice/memory.max": "268435456\n",
		}, 256 << 20},
		"VersionOne": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
			"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "134217728\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 128 << 20},
		"VersionOneInAContainer": {map[string]string{ // the path is the host's
			"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/docker/abc\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "134217728\n",
		}, 128 << 20},
		"NoLimitIsBeyondTheMachine": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 8000000 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			for file, text := range tt.files {
				root[file] = &fstest.MapFile{Data: []byte(text)}
			}
			if got := memoryOf(root); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
	if runtime.GOOS == "linux" {
		if got := memoryOf(os.DirFS("/")); got < 16<<20 || got > 1<<50 {
			t.Errorf("here: got %d bytes", got)
		}
	}
}

// TestMetricsOfTheProcess compares the second table of docs/metrics.md, those of the Go runtime and
// the process that dashboards and alerts use, with what a relay exports.
func TestMetricsOfTheProcess(t *testing.T) {
	_, table, _ := cutDocument(t, "../../docs/metrics.md", "<!-- metrics of the process -->\n", "<!-- end of metrics of the process -->")
	rows := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\|  \\| \\S").FindAllStringSubmatch(table, -1)
	if len(rows) != strings.Count(table, "\n")-2 || len(rows) == 0 {
		t.Fatalf("docs/metrics.md has no metrics of the process between its two comments, or lines that are no metric: %d rows", len(rows))
	}
	reg, _ := newRegistry("worker-1", watch.DefaultConfig())
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	types := make(map[string]string)
	for _, f := range families {
		if len(f.GetMetric()) == 1 && len(f.GetMetric()[0].GetLabel()) == 0 {
			types[f.GetName()] = strings.ToLower(f.GetType().String())
		}
	}
	for _, row := range rows {
		if got := types[row[1]]; got != row[2] && runtime.GOOS == "linux" {
			t.Errorf("%s: docs/metrics.md has it as a %s without labels, it is %q", row[1], row[2], got)
		}
	}
	if runtime.GOOS == "linux" && types["outbox_memory_limit_bytes"] != "gauge" {
		t.Error("outbox_memory_limit_bytes is not exported")
	}
}
