# dmloop's build and test commands.
#
# Variables:
#   PREFIX    where install puts the program (/usr/local)
#   DESTDIR   prepended to every installed path, for packaging
#   VERSION   what "dmloop version" prints, instead of what the source says
#   GO        the go command
#   ARCH      what build and packages are for, as Go calls it; then they are in bin/ARCH (this machine's, in bin)
#   KERNEL    guests for test-guest, with commas between: uml 6.1 6.12 new (uml)
#   PKG       packages whose tests run (./...)
#   RUN       only tests that match, as in go test -run
#   JOBS      guests at a time (2)
#   V         1: show all that the guest tests print
#   FUZZTIME  how long each fuzz target runs: a number of inputs with x, or a time (30000x)
#   HOSTFS    the host file system in the demo: ext4 or xfs (ext4)
#   TREE      the folder that the demo makes an image of (part of Go's sources)
#   BENCH     kernels that benchmarks run on (6.1,6.12,new)
#   ROUNDS    how often a benchmark measures each thing, in each of two passes (5)
#   ONLY    what benchmarks measure (all)
#   UPDATE    1: bench-check keeps its figures instead of comparing them
#   BOOT      machines of the boot tests: uml, qemu (a minute a boot) or all (uml)
#   MATRIX    guests of test-matrix (uml,6.1,6.12,new)
#   REBOOTS   how often the boot tests reboot a machine, and cut its power (1)
# The environment's DMLOOP_CACHE names the folder that keeps guest kernels.

PREFIX      ?= /usr/local
DESTDIR     ?=
VERSION     ?=
GO          ?= go
ARCH        ?=
KERNEL      ?= uml
PKG         ?= ./...
RUN         ?=
JOBS        ?= 2
V           ?=
FUZZTIME    ?= 30000x
HOSTFS      ?= ext4
TREE        ?= $(shell $(GO) env GOROOT)/src/crypto
BENCH       ?= 6.1,6.12,new
ROUNDS      ?= 5
ONLY      ?=
UPDATE      ?=
BOOT        ?= uml
REBOOTS     ?= 1
MATRIX      ?= uml,6.1,6.12,new

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
UNPARAM     := mvdan.cc/unparam@v0.0.0-20260823230713-2fa3d841b0c8
ERRORLINT   := github.com/polyfloyd/go-errorlint@v1.8.0
GOLANGCI    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
DEADCODE    := golang.org/x/tools/cmd/deadcode@v0.49.0

# Debian packages that the tests use; gcc is for the race detector.
PACKAGES := android-sdk-libsparse-utils attr bpftool btrfs-progs busybox-static bzip2 cpio dmsetup dosfstools e2fsprogs exfatprogs f2fs-tools fdisk fio gcc \
	genisoimage kmod libc6-dev lvm2 mount ntfs-3g qemu-system-x86 qemu-utils shellcheck squashfs-tools strace user-mode-linux util-linux xfsprogs xz-utils zstd

# Those that only the boot tests use: whole Debian guests and a kernel made for them.
BOOT_PACKAGES := bc bison cryptsetup-bin debootstrap flex libelf-dev libssl-dev lintian make rpm

# What every change has to show on the oldest and the newest kernel.
SMOKE := ^Test(DataPath|SealedRace|PlainRaceExt4|ImageInsideAnImage|OffsetAndSizeLimit|ReadOnly|Busy|ConciseTable|GuardComesBack|Qemu(Guard|Reader|Stopped).*|QemuGate(Holds|Refuses.*|OutlivesTheGuard)|QemuLargeBlocks|QemuGrowExt4Inside|TablesAreDmsetups)$$

ARCHITECTURES := 386 amd64 arm arm64 loong64 mips mipsle mips64 mips64le ppc64 ppc64le riscv64 s390x

PROGRAM := bin$(if $(ARCH),/$(ARCH))/dmloop

GUEST := CGO_ENABLED=0 $(GO) run -trimpath ./internal/cmd/guest

.DELETE_ON_ERROR:
.PHONY: generate test-gate test-arm64 bench-gate all build install uninstall demo man packages test test-boot test-unit test-guest test-matrix fuzz lint golangci cross deps bench bench-check guests clean

all: build

# One static program, the same on every machine.
build:
	CGO_ENABLED=0 $(if $(ARCH),GOARCH=$(ARCH)) $(GO) build -trimpath -ldflags '-s -w$(if $(VERSION), -X main.version=$(VERSION))' -o $(PROGRAM) ./cmd/dmloop

install: build
	install -D -m 0755 $(PROGRAM) '$(DESTDIR)$(PREFIX)/sbin/dmloop'
	install -d '$(DESTDIR)/sbin'
	ln -sf '$(PREFIX)/sbin/dmloop' '$(DESTDIR)/sbin/mount.dmloop'
	ln -sf '$(PREFIX)/sbin/dmloop' '$(DESTDIR)/sbin/umount.dmloop'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/sbin/dmloop' '$(DESTDIR)/sbin/mount.dmloop' '$(DESTDIR)/sbin/umount.dmloop'

# The main job on real input, in a guest (KERNEL=uml, 6.1, 6.12 or new).
demo: deps build
	$(GUEST) -kernel '$(KERNEL)' -env HOSTFS='$(HOSTFS)' -- /bin/bash internal/demo/demo.sh '$(TREE)'

# Manual pages, in bin/man.
man:
	$(GO) run -tags man ./cmd/dmloop bin/man

# Packages for Debian and for rpm, in bin or bin/ARCH.
packages: build man
	$(if $(ARCH),$(MAKE) --no-print-directory build ARCH=)
	ARCH='$(ARCH)' internal/hostfiles/packages/build.sh

# Everything, ending in one line of counts. All guest tests run in User Mode Linux;
# the other kernels run those that SMOKE names, and all of them in test-matrix.
test: deps
	$(MAKE) --no-print-directory build lint fuzz bench-check
	$(GUEST) test -unit -timeout 60m -silence 10m -kernel uml,6.1,6.12,new -parts 2 -smoke '$(SMOKE)' -jobs $(JOBS) $(if $(V),-v) ./...

test-unit:
	$(GO) test -race $(if $(RUN),-run '$(RUN)') $(PKG)

test-guest: deps
	$(GUEST) test -kernel '$(KERNEL)' -jobs $(JOBS) -run '$(RUN)' $(if $(V),-v) $(PKG)

# The core on arm64, with pages of 4 and of 16 KiB, emulated: not in make test, for it takes long.
ARM64 := ^Test(DataPath|ReadOnly|Busy|CreateOnHosts|ProvisionOnHosts|TablesAreDmsetups|KernelErrors|ConciseIsUnderstood|SealHoldUnseal|PagedTo|SealedSizes|SealedOtherPageSize|BlocksOfAPage|GuardComesBack|QemuGuardDeniesOpens|QemuGateHolds|QemuGateOutlivesTheGuard|RestoreLooksAtEveryDevice)$$

test-arm64: deps
	$(MAKE) --no-print-directory deps PACKAGES=qemu-system-arm
	$(MAKE) --no-print-directory build ARCH=arm64
	$(GUEST) -kernel arm64 -- bin/arm64/dmloop version
	$(GUEST) -kernel arm64-16k -- bin/arm64/dmloop version
	$(GUEST) test -kernel arm64,arm64-16k -timeout 4h -silence 20m -jobs $(JOBS) -run '$(or $(RUN),$(ARM64))' $(if $(V),-v) $(PKG)

# The programs of the gate in the kernel, from their source. Building dmloop needs none of it.
generate:
	$(MAKE) --no-print-directory deps PACKAGES='clang-14 llvm-14 libbpf-dev linux-libc-dev'
	$(GO) generate ./internal/gate

# The gate in the kernel: all its tests, and what comes in its place where it cannot be had.
test-gate: deps
	$(GUEST) test -kernel 6.1,6.12,new -timeout 2h -jobs $(JOBS) -run '^Test(QemuGate|GateFallback)' $(if $(V),-v) ./cmd/dmloop ./internal/gate
	$(GUEST) test -kernel 6.1,6.12,new -jobs $(JOBS) -append lsm=landlock,yama,apparmor -env 'DMLOOP_GATE_LACK=bpf is not in lsm=' -run '^TestGateFallback$$' ./cmd/dmloop
	$(GUEST) test -kernel 6.1,6.12,new -jobs $(JOBS) -append lockdown=integrity -run '^TestGateFallback$$' ./cmd/dmloop

# What the gate in the kernel costs calls that it has nothing to do with, in instructions.
bench-gate: deps
	$(GUEST) test -virtual -kernel 6.1,6.12,new -jobs 1 -v -run '^TestQemuGateCost$$' ./internal/gate | grep -E 'GATECOST|passed|FAIL'

# Hours under emulation: a guest has eight of them, and is ended when it says nothing for twenty minutes.
test-matrix: deps
	$(GUEST) test -kernel '$(MATRIX)' -env DMLOOP_EVERYTHING=1 -timeout 8h -silence 20m -jobs $(JOBS) $(if $(RUN),-run '$(RUN)') $(if $(V),-v) $(PKG)

# Boots of whole Debian guests, with systemd and udev. docs/testing.md says how long
# that takes. With -v, a failure is printed when it happens and not at the end.
BOOT_uml  := ^Test(UML|DMInit|Lintian|RPM)
BOOT_qemu := ^Test(ImageRoot|PersistRoot|Tab|GuardUnit|Packages)
BOOT_all  := .

test-boot: deps packages
	$(MAKE) --no-print-directory deps PACKAGES='$(BOOT_PACKAGES)'
	DMLOOP_BOOT_ROUNDS=$(REBOOTS) $(GO) test -tags boot -count=1 -timeout 6h -run '$(or $(RUN),$(BOOT_$(BOOT)))' -v ./internal/vmtest/bootvm

# Every fuzz target for a short while. A number of inputs and not a time: go test may take
# the end of the time for a failure of the target ("context deadline exceeded").
fuzz:
	@set -e; log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	for file in $$(grep -rl --include='*_test.go' '^func Fuzz' .); do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$file"); do \
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")" >"$$log" 2>&1 \
				|| { cat "$$log"; exit 1; }; \
			echo "$$name: nothing found in $(FUZZTIME)"; \
		done; \
	done

lint: deps
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted: $$files"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags vmtest,runner,boot ./...
	$(GO) vet -tags man ./cmd/dmloop
	$(GO) run $(STATICCHECK) -tags vmtest,runner,boot ./...
	$(GO) run $(UNPARAM) -tests=false ./...
	$(GO) run $(ERRORLINT) -test=false ./...
	@dead=$$($(GO) run $(DEADCODE) -test -tags vmtest,runner,boot ./...); if [ -n "$$dead" ]; then echo "$$dead"; exit 1; fi
	shellcheck -x -S warning internal/hostfiles/packages/prerm-guard \
		$$(git ls-files | while read -r f; do head -n 1 "$$f" | grep -qaE '^#!.*(/|env )(ba)?sh( |$$)' && echo "$$f"; done)

# golangci-lint as .golangci.yml says, which takes minutes to build the first time.
golangci:
	$(GO) run $(GOLANGCI) run ./...

# The program for every architecture that Linux and Go have in common; nothing is run.
cross:
	@for arch in $(ARCHITECTURES); do \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -o /dev/null ./cmd/dmloop || exit 1; echo "$$arch builds"; done

# Installs what is missing, and is quick when nothing is.
deps:
	@missing=$$(for p in $(PACKAGES); do \
		dpkg-query -W -f '$${db:Status-Status}\n' "$$p" 2>/dev/null | grep -qx installed || echo "$$p"; done); \
	if [ -n "$$missing" ]; then \
		echo "installing" $$missing; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	fi

# dmloop against the tools of today, in guests whose clock counts instructions; results,
# table and pictures go into docs. ONLY= measures some of it (start pair seal extents map
# request table jobs guard idle scale) and keeps the rest.
bench: deps build
	CGO_ENABLED=0 $(GO) run -trimpath ./internal/cmd/bench -kernel $(BENCH) -rounds $(ROUNDS) -only '$(ONLY)' -docs docs

# A few figures against those of docs/bench/check.json; with UPDATE=1 they are kept instead.
bench-check: deps build
	CGO_ENABLED=0 $(GO) run -trimpath ./internal/cmd/bench -check $(if $(UPDATE),-update) -docs docs

# The kernels of the guests; the tests fetch them as well.
guests: deps
	$(GUEST) fetch

clean:
	rm -rf bin
