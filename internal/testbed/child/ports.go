package child

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// FreePorts returns n different TCP ports that nobody listens on at 127.0.0.1.
//
// They are below the range that systems take outgoing ports from (32768 and up on Linux). A server
// that is restarted by a test would otherwise find its port taken, now and then, by the client that
// is trying to reach it.
func FreePorts(n int) ([]int, error) {
	var ports []int
	var last error
	for range 100 * n {
		if len(ports) == n {
			break
		}
		port := 15000 + rand.IntN(15000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			last = err
			continue
		}
		defer l.Close() // all stay open until all are found, so no port comes twice
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, errors.Join(fmt.Errorf("find %d free TCP ports between 15000 and 29999", n), last)
	}
	return ports, nil
}
