package guardd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
)

var errNotRoot = errors.New("these metrics are root's alone (dmloop guard --metrics-public lets everybody read them)")

// rootOnly refuses a connection of a loopback address whose other end is not root's. What
// cannot be found out is refused.
func rootOnly(conn net.Conn) error {
	if uid, err := peerUser(conn); err != nil || uid != 0 {
		return errNotRoot
	}
	return nil
}

// peerUser returns whom the other end of a connection within this machine belongs to. TCP
// has no credentials, so the kernel's list of sockets is asked.
func peerUser(conn net.Conn) (uid int, err error) {
	own, ok := conn.LocalAddr().(*net.TCPAddr)
	peer, okPeer := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !okPeer {
		return 0, fmt.Errorf("%s is not a TCP address", conn.RemoteAddr())
	}
	for path, form := range map[string]func(net.IP) net.IP{"/proc/net/tcp": net.IP.To4, "/proc/net/tcp6": net.IP.To16} {
		if form(own.IP) == nil || form(peer.IP) == nil {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue // a kernel without IPv6
		}
		uid, found, err := findSocket(f, socketAddress(form(peer.IP), peer.Port), socketAddress(form(own.IP), own.Port))
		f.Close()
		if err != nil || found {
			return uid, err
		}
	}
	return 0, fmt.Errorf("the socket of %s is not listed", peer)
}

// socketAddress writes an address as /proc/net/tcp does: words of the machine's order.
func socketAddress(ip net.IP, port int) string {
	var b strings.Builder
	for ; len(ip) >= 4; ip = ip[4:] {
		fmt.Fprintf(&b, "%08X", binary.NativeEndian.Uint32(ip))
	}
	fmt.Fprintf(&b, ":%04X", port)
	return b.String()
}

// established is the state of a socket that somebody holds: one that was closed by its
// process is listed as root's.
const established = "01"

// findSocket looks for a socket in the list r.
func findSocket(r io.Reader, local, remote string) (uid int, found bool, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		words := strings.Fields(lines.Text())
		if len(words) < 10 || words[1] != local || words[2] != remote {
			continue
		}
		if words[3] != established || words[9] == "0" {
			return 0, false, fmt.Errorf("the socket %s is closed", local)
		}
		uid, err := strconv.Atoi(words[7])
		return uid, err == nil, err
	}
	return 0, false, lines.Err()
}
