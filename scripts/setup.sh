#!/usr/bin/env bash
# Installs the Debian packages that a step needs: scripts/setup.sh build|demo|test...
# Only what is missing is installed; without root it says which packages to install and stops.
set -euo pipefail

# Virtual machines; their kernel and guest agent are only fetched, by build-guest.sh.
guests="libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils qemu-block-extra busybox-static sqlite3 e2fsprogs \
        cpio lz4 gcc libc6-dev"

declare -A packages=(
    [build]="git make pkg-config libc6-dev libpq-dev libsqlite3-dev libvirt-dev libxml2-dev zlib1g-dev"
    [demo]="postgresql-15 postgresql-client-15 qemu-utils qemu-system-common qemu-block-extra libnbd-bin fuse3 \
            e2fsprogs util-linux procps psmisc python3"
    [test]="postgresql-15 postgresql-client-15 qemu-utils qemu-system-common qemu-block-extra libnbd-bin fuse3 \
            e2fsprogs xfsprogs btrfs-progs util-linux procps psmisc python3 libiscsi-bin libiscsi-dev fio iproute2 \
            openssl curl ovmf swtpm swtpm-tools $guests"
    [bench-iscsi]="tgt libiscsi-dev gcc libc6-dev python3"
    [demo-kvm]="qemu-utils e2fsprogs util-linux procps python3 $guests"
)

wanted=()
for step in "$@"; do
    [ -n "${packages[$step]:-}" ] || { echo "setup: unknown step '$step' (known: ${!packages[*]})" >&2; exit 2; }
    for package in ${packages[$step]}; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || wanted+=("$package")
    done
done
if [ ${#wanted[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: these packages are missing; install them as root: apt-get install ${wanted[*]}" >&2
        exit 1
    fi
    echo "setup: installing ${wanted[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # The package must not start a database of its own: tests and demo run private ones.
    printf '#!/bin/sh\nexit 101\n' > /tmp/stillpoint-policy-rc.d
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        install -m 0755 /tmp/stillpoint-policy-rc.d /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get install -y -qq --no-install-recommends "${wanted[@]}" > /dev/null
fi
command -v swift > /dev/null || { echo "setup: swift is not on PATH; install Swift 6.3 from swift.org" >&2; exit 1; }
