// Package tab reads /etc/dmlooptab, the table of what is mapped at boot:
//
//	# NAME  IMAGE                 UUID  OPTIONS
//	data    /srv/data.img         -     nofail,pin=auto
//	host    UUID=0f1e2d3c-...     -     shim,x-initrd.attach
//
// The option words are those of crypttab(5). A blank or another odd byte in a field
// is written as a backslash and three octal digits, as in fstab(5). The package is
// pure: text in, values out.
package tab
