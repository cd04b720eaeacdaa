// Package monitoring checks monitoring/: rules, dashboards, and the manifests of the stack.
//
// Prometheus' own promtool reads the rules and runs their unit tests, which are beside them; every series and label that a rule names is held
// against the tables of docs/metrics.md, which a test of the relay compares with what it exports; every alert has a runbook, and every runbook
// an alert.
package monitoring
