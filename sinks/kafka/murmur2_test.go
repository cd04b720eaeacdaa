package kafka

import (
	"bufio"
	"encoding/base64"
	"os"
	"strconv"
	"strings"
	"testing"
)

// The vectors come from the Java client; testdata/murmur2.txt has the command.
func TestMurmur2(t *testing.T) {
	f, err := os.Open("testdata/murmur2.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, negative := 0, 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		fields := strings.Fields(lines.Text())
		var key []byte
		if fields[0] != "-" {
			if key, err = base64.StdEncoding.DecodeString(fields[0]); err != nil {
				t.Fatal(err)
			}
		}
		want := make([]int, len(fields))
		for i, field := range fields[1:] {
			if want[i], err = strconv.Atoi(field); err != nil {
				t.Fatal(err)
			}
		}
		if got := Murmur2(key); int(got) != want[0] {
			t.Errorf("Murmur2(%q) = %d, want %d", key, got, want[0])
		}
		for i, partitions := range []int{1, 3, 4, 12, 1000} {
			if got := Partition(key, partitions); got != want[i+1] {
				t.Errorf("Partition(%q, %d) = %d, want %d", key, partitions, got, want[i+1])
			}
			if got := partitionOf(string(key), partitions); got != want[i+1] {
				t.Errorf("partitionOf(%q, %d) as a string = %d, want %d", key, partitions, got, want[i+1])
			}
		}
		n++
		if want[0] < 0 {
			negative++
		}
	}
	if n != 101 || negative < 40 {
		t.Errorf("%d vectors, %d of them negative: want 101 and at least 40", n, negative)
	}
}
