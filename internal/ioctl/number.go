package ioctl

import "runtime"

// encoding is how an architecture puts a request's number together: from the top the
// direction, the size of the argument, the letter of the driver (8 bits) and the number
// that the driver gives it (8 bits).
type encoding struct {
	sizeBits          uint
	none, write, read uint32 // directions, as the program sees them
}

var (
	generic = encoding{sizeBits: 14, write: 1, read: 2}          // include/uapi/asm-generic/ioctl.h
	older   = encoding{sizeBits: 13, none: 1, write: 4, read: 2} // arch/{mips,powerpc,sparc}/include/uapi/asm/ioctl.h
)

// native is the encoding of the machine that the program is built for.
var native = encodingOf(runtime.GOARCH)

func encodingOf(arch string) encoding {
	switch arch {
	case "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le", "sparc64":
		return older
	}
	return generic
}

func (e encoding) number(direction uint32, letter, number byte, size uintptr) uint32 {
	return direction<<(16+e.sizeBits) | uint32(size)<<16 | uint32(letter)<<8 | uint32(number)
}

// IO is a request whose number says nothing of an argument, the kernel's _IO. Some, from the
// time before that was minded, take one all the same.
func IO(letter, number byte, name string) Request {
	return Request{Number: native.number(native.none, letter, number, 0), Name: name}
}

// IOR is a request that the kernel answers in an argument of size bytes, its _IOR.
func IOR(letter, number byte, size uintptr, name string) Request {
	return Request{Number: native.number(native.read, letter, number, size), Name: name}
}

// IOW is a request that the kernel reads an argument of size bytes of, its _IOW.
func IOW(letter, number byte, size uintptr, name string) Request {
	return Request{Number: native.number(native.write, letter, number, size), Name: name}
}

// IOWR is a request whose argument of size bytes the kernel reads and answers in, its
// _IOWR.
func IOWR(letter, number byte, size uintptr, name string) Request {
	return Request{Number: native.number(native.read|native.write, letter, number, size), Name: name}
}
