//go:build nonats

package main

var natsKind = leftOutSink("nats", "nonats")
