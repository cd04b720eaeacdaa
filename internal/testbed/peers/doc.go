// Package peers installs the programs that the relay is compared with and works next to: the Python
// library with its worker, Debezium Server, and what they need to run. Each is downloaded once, in
// a pinned version, into the cache directory that all runs share.
package peers
