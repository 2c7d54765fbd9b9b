// Package vm boots throw-away guests with a real kernel and runs commands in
// them as root. It is the host's side; package guestinit is what runs as
// process 1 inside.
//
// A guest sees the whole file tree of the host read-only below a tmpfs overlay,
// so it uses the host's own tools and binaries and no image has to be built,
// and nothing that a test does can reach the host's files.
//
//	kernels.go  the known kernels and where they lie; apt.go, image.go fetch and unpack them
//	uml.go      the command line of User Mode Linux
//	qemu.go     the command line of qemu
//	initramfs.go, modules.go  what a qemu guest needs before it sees the host's files
//	boot.go     describe and prepare a guest
//	watch.go    start it, wait for its end, judge it
//	job.go      what the host tells the guest and the guest tells the host
//	klog.go     faults in a kernel log
package vm
