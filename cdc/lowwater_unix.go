//go:build unix

package cdc

import (
	"net"
	"syscall"
)

// lowWater returns a function that sets SO_RCVLOWAT on the TCP connection below conn, or nil when
// it finds no such connection.
func lowWater(conn net.Conn) func(bytes int) {
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = wrapped.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return func(bytes int) {
		// Without it every byte wakes us, which is only slower; so an error is no reason to stop.
		_ = raw.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, bytes)
		})
	}
}
