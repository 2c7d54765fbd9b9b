//go:build !(386 || arm || mips || mipsle)

package ioctl

import "golang.org/x/sys/unix"

const sysSemtimedop = unix.SYS_SEMTIMEDOP
