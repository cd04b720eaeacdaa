// Package logql parses every LogQL expression of monitoring/ with Loki's own parser. It is a module of its own because Loki brings some hundred others.
// What the expressions name is checked beside it, in package monitoring.
//
// The replacements in go.mod are those of Loki's release.
package logql
