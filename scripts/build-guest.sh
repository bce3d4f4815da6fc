#!/usr/bin/env bash
# Builds the small guest that the tests and `make demo-kvm` run under QEMU: scripts/build-guest.sh [DIRECTORY]
# (default .build/guest). Makes DIRECTORY/vmlinux, DIRECTORY/vmlinuz (for UEFI) and DIRECTORY/initrd from Debian packages alone, and prints DIRECTORY.
# What is installed is taken from the system; the kernel and the guest agent are fetched (not installed) if they are not.
# A second call with nothing changed does nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../.build/guest}
mkdir -p "$out"
out=$(cd "$out" && pwd)
exec 9> "$out/lock"
flock 9

for tool in busybox cpio lz4 sqlite3 e2fsck cc ldd; do
    command -v "$tool" > /dev/null || { echo "build-guest: $tool is missing; run: scripts/setup.sh test" >&2; exit 1; }
done

fetch() {  # PACKAGE: its files, unpacked under DIRECTORY/packages/PACKAGE
    local folder=$out/packages/$1
    [ -e "$folder/.complete" ] && return 0
    rm -rf "$folder"
    mkdir -p "$folder/deb"
    # Root's downloads may lie where apt's own user cannot read: that is a warning, no more.
    (cd "$folder/deb" && apt-get -q -o APT::Sandbox::User=root download "$1" > "$folder/log" 2>&1) || {
        echo "build-guest: cannot download $1:" >&2; tail -n 3 "$folder/log" >&2; return 1; }
    dpkg -x "$folder"/deb/*.deb "$folder"
    rm -rf "$folder/deb"
    touch "$folder/.complete"
}

# The kernel: what is installed, or else what the meta package depends on.
vmlinuz=$(ls /boot/vmlinuz-*-cloud-amd64 2> /dev/null | sort -V | tail -n 1 || true)
if [ -n "$vmlinuz" ] && [ -r "$vmlinuz" ]; then
    version=${vmlinuz#/boot/vmlinuz-}
    modules=/lib/modules/$version/kernel
else
    vmlinuz=$(ls "$out"/packages/linux-image-*/boot/vmlinuz-* 2> /dev/null | sort -V | tail -n 1 || true)
    if [ -z "$vmlinuz" ]; then
        package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
        [ -n "$package" ] || { echo "build-guest: apt knows no linux-image-cloud-amd64" >&2; exit 1; }
        fetch "$package"
        vmlinuz=$(ls "$out"/packages/"$package"/boot/vmlinuz-*)
    fi
    version=${vmlinuz##*/vmlinuz-}
    modules=$(dirname "$(dirname "$vmlinuz")")/lib/modules/$version/kernel
fi

qemu_ga=$(command -v qemu-ga || true)
if [ -z "$qemu_ga" ]; then
    fetch qemu-guest-agent
    qemu_ga=$out/packages/qemu-guest-agent/usr/sbin/qemu-ga
fi

stamp=$(cat "$0" "$here"/guest/* <(stat -Lc '%n %s %Y' "$vmlinuz" "$qemu_ga" "$(command -v busybox)" "$(command -v sqlite3)") \
    | sha256sum)
if [ -f "$out/stamp" ] && [ "$(cat "$out/stamp")" = "$stamp" ] && [ -s "$out/vmlinux" ] && [ -s "$out/vmlinuz" ] && [ -s "$out/initrd" ]; then
    echo "$out"
    exit 0
fi
rm -f "$out/stamp"

# The uncompressed kernel starts fastest (QEMU enters it directly, through its PVH note): it is a stream inside the image.
# What follows the stream is not part of it: the decompressor complains after it has written everything.
is_kernel() { [ -s "$1" ] && [ "$(head -c 4 "$1" | od -An -tx1 | tr -d ' ')" = 7f454c46 ]; }
extract() {  # MAGIC COMMAND...
    local magic=$1 offset
    shift
    offset=$({ LC_ALL=C grep -aobP "$magic" "$vmlinuz" || true; } | sed -n '1s/:.*//p')
    [ -n "$offset" ] || return 1
    { tail -c "+$((offset + 1))" "$vmlinuz" | "$@" > "$out/vmlinux.new" 2> /dev/null; } || true
    is_kernel "$out/vmlinux.new"
}
if extract '\x02\x21\x4c\x18' lz4 -dc || extract '\xfd7zXZ\x00' xz -dc --single-stream \
    || extract '\x28\xb5\x2f\xfd' zstd -dc || extract '\x1f\x8b\x08' gzip -dc; then
    mv "$out/vmlinux.new" "$out/vmlinux"
else
    rm -f "$out/vmlinux.new"
    cp "$vmlinuz" "$out/vmlinux"  # QEMU starts the compressed one, too
fi

install -m 0644 "$vmlinuz" "$out/vmlinuz"

root=$(mktemp -d "$out/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"  # the guest's root directory, which not only root may enter
mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,mnt,etc/qemu/fsfreeze-hook.d,lib,lib64,modules,usr/bin,usr/sbin}
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install -m 0755 "$here/guest/init" "$root/init"
install -m 0755 "$here/guest/fsfreeze-hook" "$root/etc/qemu/fsfreeze-hook"
install -m 0755 "$here/guest/shutdown" "$root/sbin/shutdown"
# In this order: each one needs those before it.
for module in drivers/virtio/virtio_ring drivers/virtio/virtio drivers/virtio/virtio_pci_legacy_dev \
    drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci drivers/block/virtio_blk drivers/char/virtio_console \
    drivers/scsi/scsi_common drivers/scsi/scsi_mod drivers/scsi/sd_mod drivers/scsi/virtio_scsi \
    lib/libcrc32c fs/xfs/xfs net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
    [ -f "$modules/$module.ko" ] || continue  # built in, or gone from a newer kernel
    cp "$modules/$module.ko" "$root/modules/"
    echo "/modules/${module##*/}.ko" >> "$root/modules/order"
done

add() {  # PROGRAM [NAME]: with all libraries that it is linked with
    local name=${2:-$(basename "$1")} library
    cp -L "$1" "$root/usr/bin/$name"
    for library in $(ldd "$1" 2> /dev/null | grep -o '/[^ ]*' || true); do
        mkdir -p "$root$(dirname "$library")"
        [ -e "$root$library" ] || cp -L "$library" "$root$library"
    done
}
add "$qemu_ga"
add "$(command -v sqlite3)"
for tool in mke2fs e2fsck tune2fs blkid; do
    path=$(PATH=$PATH:/usr/sbin:/sbin command -v "$tool")
    add "$path"
done
ln -s mke2fs "$root/usr/bin/mkfs.ext4"
[ -f /etc/mke2fs.conf ] && cp /etc/mke2fs.conf "$root/etc/"
cc -O2 -static -Wall -Werror -o "$root/usr/bin/writer" "$here/guest/writer.c"

(cd "$root" && find . -print0 | sort -z | cpio --null --quiet -o -H newc -R 0:0 | gzip -1) > "$out/initrd.new"
mv "$out/initrd.new" "$out/initrd"
echo "$stamp" > "$out/stamp"
echo "$out"
