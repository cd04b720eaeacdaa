// Package route decides which events go to which sink, and under which topic, routing key and
// message key: the rules of RELAY_ROUTES.
//
// It is pure: rules are data (parse.go), a glob is two signs (glob.go), and what is wrong with a set
// of rules shows when it is read (table.go). A router is what one sink's rules make of one event
// (router.go): the first rule that matches counts.
//
// What it decides depends on the row and the rules alone, so every path that an event may take to a
// sink comes to the same: stream, sweep, poll, ledger, and what a person asks about.
package route
