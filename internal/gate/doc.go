// Package gate is what refuses, in the kernel, whatever could move the blocks of a mapped
// image: small programs of the BPF kind at the kernel's security hooks (gate.c), with maps
// that name the inodes and devices. They are pinned in bpffs, so that they stay in force
// whether or not a dmloop process runs. docs/gate.md has the details.
//
// Every process that may pass says so of itself (Enter) and loses that right when it ends.
package gate
