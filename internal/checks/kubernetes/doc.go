// Package kubernetes checks k8s/, overlays/ and monitoring/ as a cluster would, without one.
//
// Every file and every kustomization is decoded strictly by Kubernetes' own types, and held against
// its code for Pod Security "restricted", kube-score, Prometheus' relabelling, and the real binary:
// its settings, its ports, its paths. The database's scripts, the migration and the worker run for
// real, with exactly the commands and the environment that the manifests give them.
//
// What only an API server can tell is in package cluster.
package kubernetes
