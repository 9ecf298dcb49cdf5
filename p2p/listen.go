package p2p

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// ErrPortInUse reports a listen address whose port another process holds.
var ErrPortInUse = errors.New("port in use by another process: stop it, or listen on another port (0 picks a free one)")

// listenPlan is what to listen on, after free ports were picked and every port was tried.
type listenPlan struct {
	addrs    []ma.Multiaddr
	loopback bool // nothing but loopback
	public   bool // some address is public
}

// planListen parses the addresses, gives TCP and QUIC of one IP the same port where it is 0, and tries each port, because
// libp2p shares TCP ports between processes and starts silently with the addresses that work.
func planListen(texts []string) (listenPlan, error) {
	plan := listenPlan{loopback: true}
	picked := make(map[netip.Addr]uint16)
	for _, text := range texts {
		addr, err := ma.NewMultiaddr(text)
		if err != nil {
			return plan, fmt.Errorf("p2p: listen address %q: %w: %w", text, ErrConfig, err)
		}
		ip, port, tcp, err := endpoint(addr)
		if err != nil {
			return plan, fmt.Errorf("p2p: listen address %q: %w: %w", text, ErrConfig, err)
		}
		if port == 0 {
			if picked[ip] == 0 {
				if picked[ip], err = freePort(ip); err != nil {
					return plan, fmt.Errorf("p2p: listen on %s: %w", text, err)
				}
			}
			addr = withPort(addr, picked[ip])
		} else if err := tryPort(ip, port, tcp); err != nil {
			return plan, fmt.Errorf("p2p: listen on %s: %w", text, err)
		}
		plan.addrs = append(plan.addrs, addr)
		plan.loopback = plan.loopback && ip.IsLoopback()
		plan.public = plan.public || isPublic(ip)
	}
	return plan, nil
}

// endpoint splits /ip4|ip6/../tcp/.. or /ip4|ip6/../udp/../quic-v1, the transports that a host speaks.
func endpoint(addr ma.Multiaddr) (ip netip.Addr, port uint16, tcp bool, err error) {
	var codes []int
	for _, p := range addr.Protocols() {
		codes = append(codes, p.Code)
	}
	if len(codes) == 0 || codes[0] != ma.P_IP4 && codes[0] != ma.P_IP6 {
		return ip, 0, false, errors.New("must start with /ip4 or /ip6")
	}
	var text string
	switch {
	case slices.Equal(codes[1:], []int{ma.P_TCP}):
		tcp = true
		text, err = addr.ValueForProtocol(ma.P_TCP)
	case slices.Equal(codes[1:], []int{ma.P_UDP, ma.P_QUIC_V1}):
		text, err = addr.ValueForProtocol(ma.P_UDP)
	default:
		err = errors.New("must go on with /tcp/PORT or /udp/PORT/quic-v1")
	}
	if err != nil {
		return ip, 0, false, err
	}
	wide, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return ip, 0, false, err
	}
	host, err := manet.ToIP(addr)
	if err != nil {
		return ip, 0, false, err
	}
	ip, _ = netip.AddrFromSlice(host)
	return ip.Unmap(), uint16(wide), tcp, nil
}

func withPort(addr ma.Multiaddr, port uint16) ma.Multiaddr {
	var out ma.Multiaddr
	for _, c := range addr {
		if code := c.Protocol().Code; code == ma.P_TCP || code == ma.P_UDP {
			if with, err := ma.NewComponent(c.Protocol().Name, strconv.Itoa(int(port))); err == nil { // a uint16 is a port
				c = *with
			}
		}
		out = append(out, c)
	}
	return out
}

// tryPort opens and closes the port without sharing it.
func tryPort(ip netip.Addr, port uint16, tcp bool) error {
	at := netip.AddrPortFrom(ip, port)
	var err error
	if tcp {
		var l *net.TCPListener
		if l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err == nil {
			return l.Close()
		}
	} else {
		var c *net.UDPConn
		if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err == nil {
			return c.Close()
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return ErrPortInUse
	}
	return err
}

// freePort finds a port that is free for TCP and for UDP.
func freePort(ip netip.Addr) (uint16, error) {
	var last error
	for range 16 {
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).AddrPort().Port()
		last = errors.Join(tryPort(ip, port, false), l.Close())
		if last == nil {
			return port, nil
		}
	}
	return 0, last
}

// localNets are the networks whose many nodes share an address or a prefix for good reasons: loopback and site networks.
var localNets = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
}

// isPublic says whether an IP, or for the unspecified one an interface of this machine, is reachable from everywhere.
func isPublic(ip netip.Addr) bool {
	if !ip.IsUnspecified() {
		return ip.IsGlobalUnicast() && !slices.ContainsFunc(localNets, func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if other, ok := netip.AddrFromSlice(ipnet.IP); ok && other.Unmap().Is4() == ip.Is4() && !other.IsUnspecified() && isPublic(other.Unmap()) {
			return true
		}
	}
	return false
}
