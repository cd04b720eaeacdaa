package relay

import "encoding/binary"

// KeyHash is murmur2 with Kafka's seed, the hash by which the Java client and aiokafka spread keys
// over partitions (org.apache.kafka.common.utils.Utils.murmur2). Lanes are chosen by it too: with
// as many lanes as partitions, or a divisor of them, a lane's batch touches few partitions, and so
// becomes few produce requests.
func KeyHash(key string) uint32 {
	const (
		seed = 0x9747b28c
		m    = 0x5bd1e995
		r    = 24
	)
	h := uint32(seed) ^ uint32(len(key))
	i := 0
	for ; i+4 <= len(key); i += 4 {
		k := uint32(key[i]) | uint32(key[i+1])<<8 | uint32(key[i+2])<<16 | uint32(key[i+3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	var tail [4]byte
	if copy(tail[:], key[i:]) > 0 {
		h ^= binary.LittleEndian.Uint32(tail[:])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}

// Partition maps a key's hash to one of n buckets as Kafka's default partitioner does: the sign bit
// is dropped (Utils.toPositive), not negated. Taking the absolute value instead would differ for
// every negative hash.
func Partition(keyHash uint32, n int) int { return int(keyHash&0x7fffffff) % n }
