// Package kubernetes checks k8s/ and overlays/ as a cluster would, without one.
//
// Every file is decoded strictly into the types of the Kubernetes API, every kustomization is built, and what is built is held against
// Pod Security "restricted", kube-score, and the real binary: its settings, its ports, its paths. The database's script, the
// migration and the worker run for real, with exactly the commands and the environment that the manifests give them.
package kubernetes
