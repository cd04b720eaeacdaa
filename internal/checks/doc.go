// Package checks holds the tests of what is not Go: README.md says what checks what.
package checks
