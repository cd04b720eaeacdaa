// Package monitoring checks monitoring/: rules, dashboards, runbooks and collectors (its manifests
// are checked in package kubernetes), and runs it: a real Prometheus scrapes real relays through
// faults and is asked each expression (proof_test.go); faults raise alerts, runbooks are run, and the
// alerts end (alerts_test.go).
package monitoring
