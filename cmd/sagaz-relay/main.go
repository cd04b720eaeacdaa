// Command sagaz-relay carries events from the transactional outbox saga_outbox to Kafka, RabbitMQ
// and others.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/address"
	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/relay"
)

// Exit codes, as --help documents them.
const (
	exitFailure = 1 // it ran, and something did not work
	exitConfig  = 2 // a setting, object or right that a person has to fix
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	// The first signal drains, the second one is the shell's usual end. A terminal that is closed
	// is one of them, unless nohup was asked that it shall not matter.
	ends := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	context.AfterFunc(ctx, stop)

	cmd := newRoot()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	text := errorText(err)
	lastWords(os.Stderr, "sagaz-relay: "+strings.TrimPrefix(text, "sagaz-relay "))
	if os.Getpid() == 1 { // the container ends; what `kubectl exec` runs in it has another number
		tellKubernetes(terminationLog, text)
	}
	return exitCode(err)
}

// errorText is an error as people see it: others wrote parts of it.
func errorText(err error) string { return term.Lines(redacted.Text(err.Error())) }

// terminationLog is the file whose content Kubernetes shows as the reason why a container ended
// (kubectl describe pod). The kubelet makes it.
const terminationLog = "/dev/termination-log"

// tellKubernetes writes the error to the file, if there is one; Kubernetes reads 4096 bytes.
func tellKubernetes(path, text string) {
	f, openErr := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if openErr != nil {
		return // not in Kubernetes
	}
	_, _ = io.WriteString(f, text[:min(len(text), 4096)]) // standard error has it, too
	_ = f.Close()
}

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var (
		usage  usageError
		config configError
		setup  *relay.SetupError
	)
	if errors.As(err, &usage) || errors.As(err, &config) || errors.As(err, &setup) {
		return exitConfig
	}
	return exitFailure
}

func newRoot() *cobra.Command {
	var configFile string
	root := &cobra.Command{
		Use:   "sagaz-relay",
		Short: "Relay the saga_outbox table to Kafka, RabbitMQ and others",
		Long: `sagaz-relay delivers the events that applications insert into the table saga_outbox.

It reads the inserts from a PostgreSQL logical replication slot, publishes each to every
configured broker, in commit order per key, waits for the acknowledgements and marks the rows
"sent". It replaces the polling worker of the Python library sagaz: same table, same messages,
same variables.

Start here:
` + startWithDemo + `  sagaz-relay migrate            prepare the database of DATABASE_URL
  sagaz-relay run                relay, until SIGTERM
  sagaz-relay status             look at slots, lag and rows

Settings are environment variables; "sagaz-relay run --help" lists them. Each may also be given as
NAME_FILE, a file that holds the value, as the file NAME in RELAY_SECRETS_DIR, or in the YAML file
of --config.

Exit codes:
  0  done, or stopped by a signal (SIGTERM, SIGINT, SIGHUP) after draining
  1  something did not work; the message names it
  2  a setting, database object or right is wrong or missing; the message has what to do`,
		Args: func(cmd *cobra.Command, args []string) error {
			// cobra reports the same by itself, but as an error that looks like a failure.
			return subcommand(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			if cmd.Name() != "demo" { // which moves on the terminal, and has no text of others
				cmd.SetOut(forPeople(cmd.OutOrStdout()))
				cmd.SetErr(forPeople(cmd.ErrOrStderr()))
			}
		},
		SilenceUsage:  true,
		SilenceErrors: true,
		// How far a mistyped command may be from those in didYouMean; cobra sets it only for its
		// own message.
		SuggestionsMinimumDistance: 2,
	}
	root.PersistentFlags().StringVar(&configFile, "config", "", "YAML `file` with settings by the variables' names; the environment goes first")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// somebody's address
		if strings.Contains(err.Error(), "@") || strings.Contains(err.Error(), "://") {
			err = errors.New("a flag's value cannot be read (not shown: it may hold a password)")
		}
		return usageError{fmt.Errorf("%w\nsee: %s --help", err, cmd.CommandPath())}
	})
	load := func() (*settings, error) {
		s, err := loadSettings(os.LookupEnv, os.Environ(), configFile)
		if err == nil {
			for _, w := range s.warnings {
				fmt.Fprintln(forPeople(root.ErrOrStderr()), "sagaz-relay: warning:", w)
			}
		}
		return s, err
	}
	// run writes JSON, and nothing else.
	loadForLog := func() (*settings, error) { return loadSettings(os.LookupEnv, os.Environ(), configFile) }
	root.AddCommand(newRun(loadForLog), newMigrate(load), newStatus(load), newHealth(load), newSettings(load), newDoctor(load), newDeadLetter(load), newReplay(load), newVerify(load), newSinks(load), newRoutes(load), newView(load),
		newBench(load), newDemo(), newLoad(load), newUninstall(load), newVersion())
	return root
}

func didYouMean(commands []string) string {
	if len(commands) == 0 {
		return ""
	}
	return ": did you mean " + strings.Join(commands, " or ") + "?"
}

// noArgs refuses arguments with the usage exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no argument, got %q\nsee: %s --help", cmd.CommandPath(), address.Argument(args[0]), cmd.CommandPath())}
	}
	return nil
}
