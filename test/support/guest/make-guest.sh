#!/usr/bin/env bash
# make-guest.sh OUT: makes the tests' guest, OUT/vmlinuz and OUT/initrd.gz, from Debian packages and from root/ beside
# this script. Needs no root. Does nothing when OUT was made by the same files.
set -euo pipefail
out=$(mkdir -p "$(dirname "${1:?usage: make-guest.sh OUT}")" && cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")"
. ./packages.sh

stamp=$(content_stamp make-guest.sh packages.sh root)
[ "$(cat "$out/stamp" 2>/dev/null || :)" != "$stamp" ] || exit 0
echo "making the test guest" >&2
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT

# the cloud kernel has ext4 built in, virtio as modules
fetch_packages "$work" bookworm bookworm qemu-guest-agent busybox-static e2fsprogs =linux-image-cloud-amd64
x=$work/x root=$work/root new=$work/new
mkdir -p "$root"/{bin,sbin,etc,proc,sys,dev,run,tmp,mnt,mnt2,lib/modules,lib64,usr/bin,usr/sbin} "$new"
ln -s run "$root/var"
cp "$x"/boot/vmlinuz-* "$new/vmlinuz"

cp "$x/bin/busybox" "$root/bin/busybox"
# it lists itself, too: a link to itself would leave no busybox
for applet in $("$x/bin/busybox" --list | grep -vx busybox); do ln -s busybox "$root/bin/$applet"; done
cp -a root/. "$root/"

cp "$x/usr/sbin/qemu-ga" "$root/usr/sbin/"
cp "$x/sbin/mke2fs" "$root/sbin/mkfs.ext4"
cp "$x/etc/mke2fs.conf" "$root/etc/"
# libraries as the packages' own loader finds them, so that none comes from this machine
loader=ld-linux-x86-64.so.2
cp -L "$x/lib/x86_64-linux-gnu/$loader" "$root/lib64/"
for program in usr/sbin/qemu-ga sbin/mkfs.ext4; do
  "$root/lib64/$loader" --library-path "$x/lib/x86_64-linux-gnu:$x/usr/lib/x86_64-linux-gnu" --list "$root/$program"
done | awk '/=> \// && !/ld-linux/ { print $3 }' | sort -u | while read -r library; do cp -L "$library" "$root/lib64/"; done

# numbered, because they must be loaded in this order
number=10
for module in virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev \
  virtio/virtio_pci block/virtio_blk char/virtio_console; do
  cp "$x"/lib/modules/*/kernel/drivers/$module.ko "$root/lib/modules/$number-${module##*/}.ko"
  number=$((number + 1))
done
(cd "$root" && find . -print0 | cpio -0 -o -H newc --owner 0:0 --quiet | gzip -1) >"$new/initrd.gz"

echo "$stamp" >"$new/stamp"
rm -rf "$out"
mv -T "$new" "$out"
