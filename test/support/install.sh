#!/usr/bin/env bash
# Installs what the tests need and this machine lacks: Debian packages (as root); and, into .cache of the checkout, two
# S3 servers by `go install`, the test guest, a second QEMU, Lambda's runtime client, and linters from PyPI. Asks nothing;
# does nothing, quickly, when nothing lacks.
set -euo pipefail
cd "$(dirname "$0")/../.."

MINIO=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c
VERSITYGW=github.com/versity/versitygw/cmd/versitygw@v1.8.0

# program, and the package that has it
PACKAGES="
qemu-nbd:qemu-utils
qemu-system-x86_64:qemu-system-x86
virsh:libvirt-clients
libvirtd:libvirt-daemon
mkfs.ext4:e2fsprogs
cpio:cpio
nbdkit:nbdkit
nbdcopy:libnbd-bin
nbdsh:python3-libnbd
certtool:gnutls-bin
rclone:rclone
openssl:openssl
zstd:zstd
systemd-analyze:systemd
apparmor_parser:apparmor
fio:fio
ceph-mon:ceph-mon
ceph-osd:ceph-osd
radosgw:radosgw
ceph:ceph-common
g++:g++
curl-config:libcurl4-openssl-dev
"

export PATH="$PWD/.cache/bin:$PATH:/usr/sbin:/sbin:${GOPATH:-$HOME/go}/bin:/usr/local/go/bin"
has() { command -v "$1" >/dev/null 2>&1; }

lacking=()
for entry in $PACKAGES; do
  has "${entry%%:*}" || lacking+=("${entry##*:}")
done
if [ ${#lacking[@]} -gt 0 ]; then
  echo "installing ${lacking[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${lacking[@]}"; } >"$log" 2>&1 ||
    { cat "$log" >&2; exit 1; }
  rm -f "$log"
fi

go_install() {
  has go || { apt-get update -qq && apt-get install -y -qq --no-install-recommends golang-go ca-certificates; } >&2
  echo "building $1; this takes some minutes" >&2
  mkdir -p .cache/bin
  # GOTOOLCHAIN: the modules may ask for a newer Go than the machine has
  GOBIN="$PWD/.cache/bin" GOTOOLCHAIN=auto go install "$1"
}
has minio || [ -n "${BLOCKHAUL_TEST_S3:-}" ] || go_install "$MINIO"
has versitygw || go_install "$VERSITYGW"

if ! cmp -s test/support/linters.txt .cache/python/linters.txt; then
  python3 -c 'import ensurepip, venv' 2>/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; } >&2
  rm -rf .cache/python
  python3 -m venv .cache/python
  .cache/python/bin/pip install --quiet --disable-pip-version-check --requirement test/support/linters.txt >&2
  cp test/support/linters.txt .cache/python/linters.txt # last: a broken-off installation begins anew
fi

bash test/support/guest/make-guest.sh .cache/guest
bash test/support/guest/make-qemu10.sh .cache/qemu-10 .cache/bin/qemu-system-x86_64-10
bash test/support/make-ric.sh .cache/ric
