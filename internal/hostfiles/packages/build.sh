#!/bin/sh
# Makes the packages from the program in bin/ and the pages in bin/man, into bin/:
# make packages. With ARCH from the program in bin/ARCH, into that folder, with what this
# machine's program in bin/ says of itself. The same source gives the same packages.
set -eu
cd "$(dirname "$0")/../../.."

nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
md2man=github.com/cpuguy83/go-md2man/v2@v2.0.7

VERSION=$(bin/dmloop version | sed -n '1s/^dmloop \([^ ]*\).*/\1/p')
OUT=bin${ARCH:+/$ARCH}
ARCH=${ARCH:-$(go env GOARCH)}
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 1793491200)
export VERSION OUT ARCH SOURCE_DATE_EPOCH

rm -rf bin/package
mkdir -p bin/package/man8 bin/package/man7 bin/package/man5
for page in bin/man/*.8; do
	gzip -9nc "$page" >"bin/package/man8/${page##*/}.gz"
done
for page in dmlooptab.5 dmloop-tutorial.7 mount.dmloop.8; do
	go run "$md2man" -in "docs/$page.md" -out "bin/package/$page"
	gzip -9nc "bin/package/$page" >"bin/package/man${page##*.}/$page.gz"
done
echo ".so man8/mount.dmloop.8" | gzip -9nc >bin/package/man8/umount.dmloop.8.gz
cat internal/hostfiles/packages/prerm internal/hostfiles/packages/prerm-guard >bin/package/prerm
for shell in bash zsh fish; do
	bin/dmloop completion "$shell" >"bin/package/dmloop.$shell"
done

# The program holds other people's code, whose terms ask to be passed on.
{
	echo "dmloop, block devices from regular files."
	echo "Copyright 2026 the dmloop authors."
	printf '\nLicensed under the Apache License, Version 2.0: /usr/share/common-licenses/Apache-2.0 on\n'
	echo "Debian, https://www.apache.org/licenses/LICENSE-2.0 elsewhere."
	printf '\nThe programs that it loads into the kernel (internal/gate) are GPL-2.0-only OR BSD-2-Clause:\n'
	echo "/usr/share/common-licenses/GPL-2 and /usr/share/common-licenses/BSD on Debian,"
	echo "https://spdx.org/licenses elsewhere."
	go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/dmloop | sort -u |
		while read -r module version dir; do
			printf '\nThe program contains %s %s:\n\n' "$module" "$version"
			for terms in "$dir"/LICENSE* "$dir"/NOTICE*; do
				[ -e "$terms" ] || continue
				# Debian has the text of this one on every machine.
				if grep -q 'Apache License' "$terms"; then
					echo "Apache License, Version 2.0: /usr/share/common-licenses/Apache-2.0 on Debian,"
					echo "https://www.apache.org/licenses/LICENSE-2.0 elsewhere."
				else
					cat "$terms"
				fi
			done
		done
	printf '\nThe program contains the standard library of Go:\n\n'
	cat "$(go env GOROOT)/LICENSE"
} >bin/package/copyright
# The newest version's entries of CHANGELOG.md, as deb-changelog(5) has them.
{
	printf 'dmloop (%s) unstable; urgency=medium\n\n' "$VERSION"
	awk '/^## /{ version++; next } version == 1 && NF { gsub(/\*\*/, ""); print }' CHANGELOG.md |
		awk '/^- /{ if (entry) print entry; entry = substr($0, 3); next } { sub(/^ +/, ""); if (entry) entry = entry " " $0 } END { print entry }' |
		while read -r entry; do
			printf '%s\n' "$entry" | fold -s -w 74 | sed -e 's/ *$//' -e '1s/^/  * /' -e '1!s/^/    /'
		done
	printf '\n -- dmloop maintainers <maintainers@dmloop.example>  %s\n' "$(date -R -u -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9nc >bin/package/changelog.gz

for package in dmloop dmloop-initramfs; do
	for packager in deb rpm; do
		go run "$nfpm" package --config "internal/hostfiles/packages/$package.yaml" --packager "$packager" --target "$OUT/"
	done
done
