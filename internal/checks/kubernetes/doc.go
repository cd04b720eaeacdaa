// Package kubernetes checks k8s/, overlays/ and monitoring/ as a cluster would, without one: against
// Kubernetes' own types and Pod Security, kube-score, Prometheus' relabelling, and the real binary.
// The database's scripts, the migration and the worker run for real, with exactly the commands and
// the environment of the manifests. What only an API server can tell is in package cluster.
package kubernetes
