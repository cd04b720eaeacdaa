// Package image checks the container image without a container engine. It runs the build that the
// Dockerfile gives, puts together the root directory that its final stage describes, and runs the
// result there as Kubernetes would: as user 1000, without capabilities, as process 1, on a root
// that cannot be written (bubblewrap). That Docker reads the file the same way is left to Docker.
package image
