// Package admin serves what operators and probes ask over HTTP. It knows watch.Status and not where
// the numbers come from, and it keeps no state but the last look at the database.
//
//	/               the status page, which stays current without a reload
//	/status.json    the same as JSON
//	/metrics        Prometheus, also as OpenMetrics
//	/health/live    the process works; never depends on database or brokers, because a
//	                restart would not fix those
//	/health/ready   this relay does its part: it owns its slots and moves, or is standby
//
// Everything is read-only: GET and HEAD.
//
// The page asks for /status.json every two seconds while it is in view. A stream of events would
// keep a connection open for every viewer, and port-forwards and proxies cut those. A short request
// survives both, and costs the relay some microseconds and the reader nothing.
//
// With a token, everything but /health is asked for it: probes cannot keep a secret. A program
// sends it as Bearer, a browser asks its user, who types it as the password of any user name (HTTP
// basic).
//
// Texts from rows and brokers are shown as text. The page puts it into text nodes only, and its
// content security policy forbids everything but its own style and script.
package admin
