// Command linked prints one line, and has the libraries in it that dmloop has: what they
// cost at every start, whoever uses them.
package main

import (
	"fmt"

	_ "github.com/cilium/ebpf"
	_ "github.com/cilium/ebpf/btf"
	_ "github.com/cilium/ebpf/link"
	_ "github.com/cilium/ebpf/ringbuf"
	_ "github.com/coreos/go-systemd/v22/daemon"
	_ "github.com/coreos/go-systemd/v22/unit"
	_ "github.com/fsnotify/fsnotify"
	_ "github.com/spf13/cobra"
)

func main() { fmt.Println("hello") }
