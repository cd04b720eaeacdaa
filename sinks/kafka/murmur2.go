package kafka

// Murmur2 is the hash that the Java client partitions by: 32-bit MurmurHash2 with Kafka's own seed, over
// bytes read as little-endian words. Overflow is meant: it is the algorithm.
func Murmur2(key []byte) int32 { return murmur2(key) }

// Partition says where the Java client, aiokafka and librdkafka's murmur2_random put a key. An empty key
// has a hash like any other; that records without a key are spread is the sink's doing. It panics
// when partitions is not positive.
func Partition(key []byte, partitions int) int { return partitionOf(key, partitions) }

// partitionOf clears the sign bit like Utils.toPositive. Taking the absolute value instead would differ for every
// negative hash.
func partitionOf[K ~string | ~[]byte](key K, partitions int) int {
	return int(murmur2(key)&0x7fffffff) % partitions
}

func murmur2[K ~string | ~[]byte](key K) int32 {
	const (
		seed uint32 = 0x9747b28c
		m    uint32 = 0x5bd1e995
		r           = 24
	)
	h := seed ^ uint32(len(key))
	i := 0
	for ; i+4 <= len(key); i += 4 {
		k := uint32(key[i]) | uint32(key[i+1])<<8 | uint32(key[i+2])<<16 | uint32(key[i+3])<<24
		k *= m
		k ^= k >> r
		k *= m
		h *= m
		h ^= k
	}
	switch len(key) - i {
	case 3:
		h ^= uint32(key[i+2]) << 16
		fallthrough
	case 2:
		h ^= uint32(key[i+1]) << 8
		fallthrough
	case 1:
		h ^= uint32(key[i])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return int32(h)
}
