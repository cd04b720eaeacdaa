package relay

import "testing"

// The vectors are those of the Java client's own test (UtilsTest.testMurmur2), which aiokafka uses
// too.
func TestKeyHash(t *testing.T) {
	for key, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(KeyHash(key)); got != want {
			t.Errorf("%q: got %d, want %d", key, got, want)
		}
		// Utils.toPositive: the sign bit is dropped, which is not the absolute value.
		if got, want := Partition(KeyHash(key), 7), int(want&0x7fffffff)%7; got != want {
			t.Errorf("%q: got partition %d of 7, want %d", key, got, want)
		}
	}
}
