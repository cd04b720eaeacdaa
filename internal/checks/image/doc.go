// Package image checks the container image without a container engine: it reads the Dockerfile, does what its build stage says
// in a sandbox that looks like one (bubblewrap), puts together the root directory that its final stage describes, and runs
// the result there as Kubernetes would: as user 1000, without capabilities, as process 1, on a root that cannot be written.
package image
