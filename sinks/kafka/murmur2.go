package kafka

import "github.com/sagaz-relay/relay/relay"

// Murmur2 is the hash that the Java client partitions by.
func Murmur2(key []byte) int32 { return int32(relay.KeyHash(string(key))) }

// Partition is where the Java client, aiokafka and librdkafka's murmur2_random put a key. An empty
// key has a hash like any other; it is the sink that spreads records without a key. It panics when
// partitions is not positive.
func Partition(key []byte, partitions int) int { return partitionOf(string(key), partitions) }

func partitionOf(key string, partitions int) int {
	return relay.Partition(relay.KeyHash(key), partitions)
}
