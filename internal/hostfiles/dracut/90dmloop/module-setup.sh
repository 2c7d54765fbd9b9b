#!/bin/bash
# dracut module: shims and images that the root file system needs.
# shellcheck disable=SC2154 # dracut sets the variables of its own

check() {
    require_binaries dmloop || return 1
    [[ -e $dracutsysrootdir/etc/dmlooptab ]] && grep -Eq '^[^#]*x-initrd\.attach' "$dracutsysrootdir/etc/dmlooptab" && return 0
    compgen -G "$dracutsysrootdir/etc/dmloop/boot/*.manifest" > /dev/null && return 0
    return 255
}

depends() {
    echo dm
}

installkernel() {
    instmods dm_mod loop ext4 xfs f2fs
}

install() {
    local manifest
    inst_binary dmloop /usr/sbin/dmloop
    [[ ! -e $dracutsysrootdir/etc/dmlooptab ]] || inst_simple /etc/dmlooptab
    for manifest in "$dracutsysrootdir"/etc/dmloop/boot/*.manifest; do
        [[ ! -e $manifest ]] || inst_simple "${manifest#"$dracutsysrootdir"}"
    done
    inst_rules 56-dmloop.rules 61-dmloop.rules
    # The queue is not done before this says so, and mounts nothing before it is done.
    inst_hook initqueue/finished 90 "$moddir/dmloop-finished.sh"
}
