package guardd

import (
	"net"
	"os"
	"strings"
	"testing"
)

func TestPeerUser(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil && strings.HasPrefix(address, "[") {
			t.Logf("no IPv6 here: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if uid, err := peerUser(server); err != nil || uid != os.Getuid() {
			t.Errorf("%s: user %d, %v", address, uid, err)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		if uid, err := peerUser(server); err == nil {
			t.Errorf("%s: user %d of a socket that is closed", address, uid)
		}
	}
}

func TestFindSocket(t *testing.T) {
	const list = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1111 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2222 1 0000000000000000 20 4 30 10 -1
   2: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 3333 1 0000000000000000 20 4 30 10 -1
   3: 0100007F:C351 0100007F:1F90 04 00000000:00000000 00:00000000 00000000     0        0 0 1 0000000000000000 20 4 30 10 -1
   4: 0100007F:C352 0100007F:1F90 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0000000000000000
`
	own := socketAddress(net.IPv4(127, 0, 0, 1).To4(), 8080)
	for port, want := range map[int]int{50000: 1000, 50001: -1, 50002: -1, 50003: -1} {
		uid, found, err := findSocket(strings.NewReader(list), socketAddress(net.IPv4(127, 0, 0, 1).To4(), port), own)
		if found != (want >= 0) || found && uid != want {
			t.Errorf("port %d: user %d, %t, %v; want %d", port, uid, found, err, want)
		}
	}
	if got := socketAddress(net.IPv6loopback, 80); got != "00000000000000000000000001000000:0050" {
		t.Errorf("::1 is %s", got)
	}
}
