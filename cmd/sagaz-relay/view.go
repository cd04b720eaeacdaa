package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/sagaz-relay/relay/internal/term"
	"github.com/sagaz-relay/relay/migrations"
	"github.com/sagaz-relay/relay/relay/store"
)

func newView(load func() (*settings, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "view",
		Short: "List the views through which applications insert under their own names, make or drop one",
		Long: `A view is an outbox table under an application's own names: the application inserts into it, and
its rows are rows of saga_outbox. There may be several. view lists those that "view make" has made.`,
		Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return onDatabase(cmd, load, "view", func(ctx context.Context, _ *settings, conn *pgx.Conn) error {
				views, err := migrations.Views(ctx, conn)
				if err != nil {
					return err
				}
				if asJSON {
					return term.WriteJSON(cmd.OutOrStdout(), struct {
						Views []migrations.View `json:"views"`
					}{append([]migrations.View{}, views...)})
				}
				return printViews(cmd.OutOrStdout(), views)
			})
		},
		SuggestionsMinimumDistance: 2,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(newViewMake(load), newViewDrop(load))
	return cmd
}

func printViews(w io.Writer, views []migrations.View) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VIEW\tCOLUMN\tIS\tTYPE")
	for _, v := range views {
		name := term.Text(v.Schema + "." + v.Name)
		for _, c := range v.Columns {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, term.Text(c.Name), term.Text(c.Of), term.Text(c.Type))
			name = ""
		}
		if v.KeyHeader != "" {
			fmt.Fprintf(t, "%s\tkey\theader:%s\t\n", name, term.Text(v.KeyHeader))
		}
	}
	return t.Flush()
}

func newViewMake(load func() (*settings, error)) *cobra.Command {
	var key string
	var onlyPrint bool
	cmd := &cobra.Command{
		Use:   "make [SCHEMA.]NAME COLUMN[:TYPE]=OURS…",
		Short: "Make a view through which an application inserts under its own names",
		Long: `make makes a view with the columns that are given. OURS is what each is in saga_outbox: event_id,
saga_id, aggregate_type, aggregate_id (the key, by which events are ordered), event_type, payload,
headers, created_at, or header:NAME for a header of the message. TYPE is the column's type; without
it, it is that of saga_outbox, and text for a header.

  sagaz-relay view make outbox id=event_id aggregatetype=aggregate_type aggregateid=aggregate_id \
    type=event_type payload=payload tenant:integer=header:tenant

event_type, payload and a key have to be among them. What is left out gets a value by itself: a new
event_id, the key as saga_id, "saga" as aggregate_type, now as created_at. With --key header:NAME an
event that has this header is ordered by it, and any other by aggregate_id.

An application needs INSERT on the view, and no right on saga_outbox: the view's trigger runs with
the rights of the role that makes it. A DELETE through the view finds the row and leaves it to
RELAY_RETENTION; an UPDATE is an error. INSERT … ON CONFLICT does not work on a view with a trigger.
A SELECT finds the rows of all applications, and NULL where a column's type is not that of
saga_outbox and no text.

--print prints the SQL and changes nothing: for those who have a tool for migrations.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{fmt.Errorf("%s: want a name and columns\nsee: %[1]s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := readView(args, key)
			if err != nil {
				return usageError{fmt.Errorf("%w\nsee: %s --help", err, cmd.CommandPath())}
			}
			return onDatabaseToMigrate(cmd, load, func(ctx context.Context, conn *pgx.Conn) error {
				if onlyPrint {
					sql, err := migrations.ViewSQL(ctx, conn, v)
					if err == nil {
						fmt.Fprint(cmd.OutOrStdout(), "BEGIN;\n", sql, "COMMIT;\n")
					}
					return err
				}
				_, made, err := migrations.MakeView(ctx, conn, v)
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "view %s %s\n", term.Text(args[0]), madeOrThere(made))
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "`header:NAME` that holds the key of the events that have it")
	cmd.Flags().BoolVar(&onlyPrint, "print", false, "print the SQL, and change nothing")
	return cmd
}

// readView reads the arguments of `view make`.
func readView(args []string, key string) (v migrations.View, err error) {
	v.Schema, v.Name = splitName(args[0])
	for _, arg := range args[1:] {
		name, of, found := strings.Cut(arg, "=")
		if !found {
			return v, fmt.Errorf("%s: want COLUMN=OURS", term.Text(arg))
		}
		name, kind, _ := strings.Cut(name, ":")
		v.Columns = append(v.Columns, migrations.ViewColumn{Name: name, Of: of, Type: kind})
	}
	if key != "" {
		header, is := strings.CutPrefix(key, "header:")
		if !is || header == "" {
			return v, fmt.Errorf("--key %s: want header:NAME", term.Text(key))
		}
		v.KeyHeader = header
	}
	return v, v.Check()
}

func splitName(text string) (schema, name string) {
	if schema, name, found := strings.Cut(text, "."); found {
		return schema, name
	}
	return "", text
}

func newViewDrop(load func() (*settings, error)) *cobra.Command {
	return &cobra.Command{
		Use:   "drop [SCHEMA.]NAME",
		Short: "Drop a view that was made by \"view make\"",
		Long: `drop drops a view that "view make" has made, and its function. Rows stay in saga_outbox and are
delivered. Applications that still insert into the view get an error.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("%s: want a view's name\nsee: %[1]s --help", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return onDatabaseToMigrate(cmd, load, func(ctx context.Context, conn *pgx.Conn) error {
				schema, name := splitName(args[0])
				err := migrations.DropView(ctx, conn, schema, name)
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "view %s dropped\n", term.Text(args[0]))
				}
				return err
			})
		},
	}
}

// onDatabaseToMigrate is onDatabase for a session that makes tables and the like.
func onDatabaseToMigrate(cmd *cobra.Command, load func() (*settings, error), f func(context.Context, *pgx.Conn) error) error {
	s, err := load()
	if err != nil {
		return err
	}
	if err := s.database(); err != nil {
		return err
	}
	ctx := cmd.Context()
	conn, err := store.ConnectToMigrate(ctx, s.cdc.DatabaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // all is committed
	err = f(ctx, conn)
	if errors.Is(err, migrations.ErrView) {
		return configError{err}
	}
	return permission(err)
}
