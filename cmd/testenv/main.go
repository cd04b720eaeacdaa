// Command testenv runs a command, such as the tests, with a real PostgreSQL, Apache Kafka and
// RabbitMQ around it.
//
//	go run ./cmd/testenv -- go test -race ./...
//
// It takes each of them from the first of these that has it, and prints which in one line:
//
//  1. an address in the environment: SAGAZ_TEST_POSTGRES_18 (and _14, ...; a superuser's URL),
//     SAGAZ_TEST_KAFKA (host:port), SAGAZ_TEST_RABBITMQ (amqp://...);
//  2. Docker, if it runs (Kafka and RabbitMQ);
//  3. this machine: PostgreSQL embedded, Kafka from Maven Central, RabbitMQ and Redis from the
//     system's packages (of Redis the program only: tests start servers of their own). What is
//     missing for that is installed on Debian as root; otherwise the run fails with the line that
//     installs it.
//
// The command gets the addresses in the same variables, plus SAGAZ_TEST_KAFKA_STATE and
// SAGAZ_TEST_RABBITMQ_STATE for the other listeners (see internal/testbed/brokertest),
// SAGAZ_TEST_PG_VERSIONS, SAGAZ_TEST_RACE with -race, and a TMPDIR of its own. When it ends, or is
// interrupted, all that was started is stopped, and its temporary files are removed.
//
// Exit codes: the command's own; 128 + n when a signal ended it; 1 when something could not be had;
// 2 for wrong usage.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sagaz-relay/relay/internal/testbed"
	"github.com/sagaz-relay/relay/internal/testbed/child"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, log io.Writer) int {
	flags := flag.NewFlagSet("testenv", flag.ContinueOnError)
	flags.SetOutput(log)
	versions := flags.String("postgres", cmp.Or(os.Getenv("SAGAZ_TEST_PG_VERSIONS"), "14,18"), "major `versions` of PostgreSQL, comma separated; none for none")
	brokers := flags.String("brokers", "kafka,rabbitmq,redis", "brokers to bring up; none for none")
	tools := flags.String("tools", "", "`programs` of Debian packages to bring, comma separated: "+testbed.ToolNames())
	race := flags.Bool("race", false, "bring a C compiler, too, which go test -race needs, and run relays with the race detector")
	flags.Usage = func() {
		fmt.Fprintln(log, "usage: testenv [flags] -- command [arguments]\n\nRuns command with PostgreSQL, Kafka and RabbitMQ around it; go doc ./cmd/testenv has where they come from.")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	command := flags.Args()
	if len(command) == 0 {
		flags.Usage()
		return 2
	}
	// Interrupted, we still have to take down what we brought up: from here on signals only end
	// contexts.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	work, err := os.MkdirTemp("", "sagaz-testenv-")
	if err == nil {
		err = os.Chmod(work, 0o755) // PostgreSQL runs as somebody else when we are root
	}
	if err != nil {
		fmt.Fprintln(log, "testenv: create a working directory:", err)
		return 1
	}
	defer removeAll(work)

	parts, err := testbed.Choose(*versions, *brokers, work, log)
	if err != nil {
		fmt.Fprintln(log, "testenv:", err)
		return 2
	}
	wanted, err := testbed.ChooseTools(*tools)
	if err != nil {
		fmt.Fprintln(log, "testenv:", err)
		return 2
	}
	parts = append(parts, wanted...)
	if *race {
		parts = append(parts, testbed.Compiler())
	}
	env, down, err := testbed.BringUp(parts, signals, log)
	defer down()
	if err != nil {
		fmt.Fprintln(log, "testenv:", err)
		return testbed.ExitCode(err)
	}
	if *race {
		env = append(env, "SAGAZ_TEST_RACE=1") // the relays that tests start have the race detector, too
	}
	env = append(env, "SAGAZ_TEST_PG_VERSIONS="+testbed.List(*versions), "TMPDIR="+filepath.Join(work, "tmp"))
	if err := os.Mkdir(filepath.Join(work, "tmp"), 0o755); err != nil {
		fmt.Fprintln(log, "testenv: create a working directory:", err)
		return 1
	}
	code, err := runCommand(command, env, signals)
	if err != nil {
		fmt.Fprintln(log, "testenv:", err)
	}
	return code
}

// patience is how long the command may take to end after a signal.
const patience = 20 * time.Second

// runCommand runs command to its end and hands it the signals that we get. It has a process group
// of its own, and the group gets the signal: `go test` does not pass on to the test binaries what
// is sent to it alone.
func runCommand(command, env []string, signals <-chan os.Signal) (int, error) {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return 127, err
	}
	cmd := exec.Command(path, command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	// no stdin: another process group may not read from the terminal
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	p, err := child.Start(cmd, syscall.SIGTERM)
	if err != nil {
		return 1, err
	}
	var giveUp <-chan time.Time
	var got os.Signal
	for {
		select {
		case <-p.Done():
			endGroup(p.PID())
			return commandCode(p.Err(), got)
		case sig := <-signals:
			signalGroup(p.PID(), sig)
			if got == nil {
				got, giveUp = sig, time.After(patience)
			}
		case <-giveUp:
			endGroup(p.PID())
			giveUp = nil
		}
	}
}

func commandCode(err error, got os.Signal) (int, error) {
	if got != nil {
		return testbed.ExitCode(testbed.Interrupted{Signal: got}), testbed.Interrupted{Signal: got}
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		if err != nil {
			return 1, err
		}
		return 0, nil
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), err
	}
	return exit.ExitCode(), nil
}

// removeAll tries for a while: a server that was killed a moment ago may still write to its
// directory.
func removeAll(dir string) {
	for range 20 {
		if os.RemoveAll(dir) == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}
