//go:build noaws

package main

import "slices"

var awsKinds = slices.Concat(leftOutSink("sqs", "noaws"), leftOutSink("sns", "noaws"))
