package gate

// The objects are made with Debian 12's clang and committed, so that building dmloop needs
// none. gate.sum says which source they were made of, and a test compares it.
//
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -type page_key -type page -type fact -type inode_key -type device -type row_key -type row -type part_key -type name_key -type process -type denial -type right gate gate.c -- -O2 -Wall -Werror -I/usr/include/x86_64-linux-gnu
//go:generate go run ./sum
