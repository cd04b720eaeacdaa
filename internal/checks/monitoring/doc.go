// Package monitoring checks monitoring/: rules, dashboards, runbooks and collectors. Its manifests
// are checked with those of k8s/, in package kubernetes.
//
// Prometheus' own promtool reads the rules and runs their unit tests, which are next to them. Every
// series and label that a rule or a dashboard names is in the table of docs/metrics.md, which a
// test of the relay compares with what it exports; every alert has a runbook, and every runbook an
// alert.
//
// And it is run: a real Prometheus scrapes real relays through faults, and is asked each expression
// (proof_test.go); faults raise the alerts, runbooks are run, and the alerts end (alerts_test.go).
package monitoring
