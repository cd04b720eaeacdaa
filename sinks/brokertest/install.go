package brokertest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sagaz-relay/relay/internal/cache"
)

// What the brokers need of Debian. (Its default JRE is 17 in Debian 12, and newer in later ones.)
var (
	kafkaPackages  = []string{"default-jre-headless", "maven"}
	rabbitPackages = []string{"rabbitmq-server"}
)

// EnsureKafka installs what StartKafka needs and this machine lacks, when it is Debian (or Ubuntu) and we are root.
// Otherwise the error is the line to run.
func EnsureKafka(ctx context.Context, log io.Writer) error {
	var need []string
	if _, err := exec.LookPath("java"); err != nil {
		need = append(need, "default-jre-headless")
	}
	root, err := cache.DefaultRoot()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, kafkaCacheName())); err != nil { // with the jars there, Maven has nothing to do
		if _, err := exec.LookPath("mvn"); err != nil {
			need = append(need, "maven")
		}
	}
	return install(ctx, log, need)
}

// EnsureRabbitMQ is EnsureKafka for StartRabbitMQ.
func EnsureRabbitMQ(ctx context.Context, log io.Writer) error {
	if _, err := rabbitScripts(); err != nil {
		return install(ctx, log, rabbitPackages)
	}
	return nil
}

func missing(program string, packages ...string) error {
	return fmt.Errorf("%s is not installed; on Debian: apt-get update && apt-get install -y --no-install-recommends %s",
		program, strings.Join(packages, " "))
}

var aptMu sync.Mutex // apt-get waits for another process's lock, but two of ours need not meet there

func install(ctx context.Context, log io.Writer, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return missing(strings.Join(packages, ", "), packages...)
	}
	aptMu.Lock()
	defer aptMu.Unlock()

	// A package that brings a service starts it while being installed, unless this file says no (101). We start our own.
	const policy = "/usr/sbin/policy-rc.d"
	if f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755); err == nil {
		defer os.Remove(policy)
		_, err = f.WriteString("#!/bin/sh\nexit 101\n")
		if closeErr := f.Close(); err != nil || closeErr != nil {
			return fmt.Errorf("write %s: %w", policy, err)
		}
	} else if !os.IsExist(err) {
		return fmt.Errorf("keep services from starting while they are installed: %w", err)
	}

	progress(log, "installing %s with apt-get", strings.Join(packages, ", "))
	for _, args := range [][]string{
		{"update", "-qq"},
		append([]string{"install", "-y", "-qq", "--no-install-recommends"}, packages...),
	} {
		args = append([]string{"-o", "DPkg::Lock::Timeout=600"}, args...)
		apt := exec.CommandContext(ctx, "apt-get", args...)
		apt.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := apt.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, lastLines(out, 10))
		}
	}
	return nil
}
