// Package stack holds monitoring/ against the monitoring stack's Prometheus, of the version that
// monitoring/ ships.
//
// Its tests have the build tag stack, because their programs are built from source first, which
// takes minutes: `make test-stack` does that, by the module in prometheus/, which has no code. With
// them it runs this package and those of internal/checks/monitoring, which in `make test` have
// Debian's Prometheus.
//
// Loki, Tempo and Grafana are not among them. Their modules are under the AGPL, and this project's
// tests build none of those.
package stack
