package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
)

// errGuarded is what is wrong with an address that the guard refuses.
var errGuarded = errors.New("not connected: the address is not public")

// guard refuses to connect to addresses that a name should not lead to. It looks at the address
// that is dialled, when the name is resolved: whoever owns the name can change what it means
// between a look and a connection.
type guard struct {
	private bool // private and loopback addresses are meant
}

// newGuard decides by the host of the URL.
func newGuard(host string, allowPrivate bool) guard {
	return guard{private: allowPrivate || meansInside(host)}
}

// insideNames end names that public DNS does not have: of Kubernetes' services, and those set aside
// for private networks (RFC 6762, 6761 and 8375; ICANN's .internal).
var insideNames = []string{".svc", ".local", ".internal", ".localhost", ".lan", ".home.arpa"}

// meansInside reports whether whoever wrote the host has meant a private address.
func meansInside(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		return kindOf(ip) == privateAddress
	}
	if !strings.Contains(host, ".") {
		return true
	}
	for _, end := range insideNames {
		if strings.HasSuffix(host, end) {
			return true
		}
	}
	return false
}

// control is a net.Dialer's: address is what is about to be connected to.
func (g guard) control(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	return g.check(host)
}

func (g guard) check(host string) error {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return err
	}
	switch kind := kindOf(ip); {
	case kind == publicAddress, kind == privateAddress && g.private:
		return nil
	case kind == privateAddress:
		return fmt.Errorf("%w: %s is private", errGuarded, ip)
	default:
		return fmt.Errorf("%w: %s is link-local, multicast or reserved, which is never allowed", errGuarded, ip)
	}
}

type addressKind int

const (
	publicAddress addressKind = iota
	privateAddress
	forbiddenAddress
)

// Networks that netip has no question for.
var (
	shared    = netip.MustParsePrefix("100.64.0.0/10") // carriers, and many a cluster's pods (RFC 6598)
	forbidden = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("240.0.0.0/4"),        // reserved, and broadcast
		netip.MustParsePrefix("fd00:ec2::254/128"),  // metadata of AWS, which is no link-local network here
		netip.MustParsePrefix("100.100.100.200/32"), // of Alibaba
		netip.MustParsePrefix("168.63.129.16/32"),   // of Azure
		netip.MustParsePrefix("fec0::/10"),          // once site-local
	}
	// An IPv4 address is in them, which a translator or a tunnel takes for the one that is meant.
	translated = []struct {
		prefix netip.Prefix
		at     int
	}{{netip.MustParsePrefix("64:ff9b::/96"), 12}, {netip.MustParsePrefix("2002::/16"), 2}}
)

func kindOf(ip netip.Addr) addressKind {
	ip = ip.Unmap().WithZone("")
	for _, t := range translated {
		if t.prefix.Contains(ip) {
			bytes := ip.As16()
			return kindOf(netip.AddrFrom4([4]byte(bytes[t.at : t.at+4])))
		}
	}
	for _, prefix := range forbidden {
		if prefix.Contains(ip) {
			return forbiddenAddress
		}
	}
	switch {
	case ip.IsUnspecified(), ip.IsLinkLocalUnicast(), ip.IsMulticast():
		return forbiddenAddress
	case ip.IsLoopback(), ip.IsPrivate(), shared.Contains(ip):
		return privateAddress
	default:
		return publicAddress
	}
}
