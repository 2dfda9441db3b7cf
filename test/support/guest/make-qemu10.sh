#!/usr/bin/env bash
# make-qemu10.sh OUT LAUNCHER: a second, newer QEMU beside the system's, from Debian's backports, unpacked into OUT and
# started by the script LAUNCHER with its own libraries and firmware. Needs no root, changes nothing of the system's QEMU.
# Does nothing when OUT was made there by the same files.
set -euo pipefail
usage="usage: make-qemu10.sh OUT LAUNCHER"
absolute() { mkdir -p "$(dirname "$1")" && echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"; }
out=$(absolute "${1:?$usage}") launcher=$(absolute "${2:?$usage}")
cd "$(dirname "$0")"
. ./packages.sh

stamp="$(content_stamp make-qemu10.sh packages.sh) $out" # the launcher names its folder
[ "$(cat "$out/stamp" 2>/dev/null || :)" != "$stamp" ] || [ ! -x "$launcher" ] || exit 0
echo "fetching QEMU 10" >&2
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
fetch_packages "$work" "bookworm bookworm-backports" bookworm-backports qemu-system-x86
x=$work/x
rm -rf "$x/usr/share/doc" "$x/usr/share/man" "$x/usr/share/locale"

# the packages' own loader, so that it runs whatever the machine's libc is
cat >"$work/launcher" <<EOF
#!/bin/sh
exec "$out/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --argv0 "\$0" \\
  --library-path "$out/lib/x86_64-linux-gnu:$out/usr/lib/x86_64-linux-gnu" \\
  "$out/usr/bin/qemu-system-x86_64" -L "$out/usr/share/qemu" -L "$out/usr/share/seabios" "\$@"
EOF
chmod 755 "$work/launcher"
echo "$stamp" >"$x/stamp"
rm -rf "$out"
mv -T "$x" "$out"
mv "$work/launcher" "$launcher"
"$launcher" -version >&2
