//go:build noredis

package main

var redisKind = leftOutSink("redis", "noredis")
