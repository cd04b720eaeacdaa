// Package checks holds the tests of what is not Go: manifests, the compose file, the image, dashboards, rules, documents.
//
// It is a module of its own, so that the libraries which read those files (Kubernetes' types, compose-go, PromQL, …) are no dependencies of the
// product. Everything is compared with the real binary, built from the tree around it: package product. `make test` runs it.
package checks
