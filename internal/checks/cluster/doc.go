// Package cluster applies k8s/ to a real API server: with kubectl, over objects that have the
// names, the environment and the security settings of the library's manifests, and next to a
// stranger's.
//
// Its tests have the build tag cluster, because etcd, kube-apiserver and kubectl are built from
// source first, which takes six minutes of processor time once: `make test-cluster` does that, by
// the module in apiserver/. No controllers run, so no Deployment makes pods; that is looked at by
// package kubernetes, which runs the commands of the pods.
package cluster
