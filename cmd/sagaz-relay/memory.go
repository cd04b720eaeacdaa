package main

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sagaz-relay/relay/relay/watch"
)

// newRegistry returns a registry with what Go and the operating system report of this process, and
// the relay's own metrics.
func newRegistry(workerID string, cfg watch.Config) (*prometheus.Registry, *watch.Metrics) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := watch.NewMetrics(reg, workerID, cfg)
	v, revision := buildVersion()
	metrics.Build(v, revision)
	metrics.MemoryLimit(memoryOf(os.DirFS("/")))
	return reg, metrics
}

// memoryOf returns how many bytes this process may use before the kernel ends it: the least limit
// of its control groups, of version 1 or 2, or the machine's memory. 0 when that is not known, as
// where there is no /proc.
func memoryOf(root fs.FS) uint64 {
	least := uint64(0)
	consider := func(bytes uint64, err error) {
		if err == nil && bytes > 0 && (least == 0 || bytes < least) {
			least = bytes
		}
	}
	meminfo, _ := fs.ReadFile(root, "proc/meminfo")
	if _, rest, ok := bytes.Cut(meminfo, []byte("MemTotal:")); ok {
		if fields := bytes.Fields(rest); len(fields) > 0 {
			kib, err := strconv.ParseUint(string(fields[0]), 10, 64)
			consider(kib<<10, err)
		}
	}
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	for lines := bufio.NewScanner(bytes.NewReader(groups)); lines.Scan(); {
		// hierarchy:controllers:/path
		parts := strings.SplitN(lines.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		mount, file := "sys/fs/cgroup", "memory.max"
		if parts[1] != "" {
			mount, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
			if !slices.Contains(strings.Split(parts[1], ","), "memory") {
				continue
			}
		}
		// A limit of a group holds for those below it. In a container the path may be the host's:
		// then only the last, the mount itself, is there.
		for group := path.Clean("/" + parts[2]); ; group = path.Dir(group) {
			text, err := fs.ReadFile(root, path.Join(mount, group, file))
			if err == nil {
				// "max" is no number, and no limit
				consider(strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64))
			}
			if group == "/" {
				break
			}
		}
	}
	return least
}
