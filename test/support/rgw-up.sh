#!/usr/bin/env bash
# rgw-up.sh DIR PORT MONITOR_PORT ACCESS_KEY SECRET_KEY
#
# A one-node Ceph RGW (monitor, one in-memory OSD, radosgw) on 127.0.0.1: no systemd, no manager, no cephx, any user.
# Debian packages: ceph-mon ceph-osd radosgw ceph-common. Ready in one to two seconds, about 125 MB of memory.
# RGW_LIFECYCLE_DAY in the environment: so many seconds are a day to lifecycle rules.
# PORT is the S3 endpoint; the OSD takes free ports from 6800 on.
set -euo pipefail
DIR=${1:?dir}; PORT=${2:?port}; MON_PORT=${3:?monitor port}; ACCESS=${4:?access key}; SECRET=${5:?secret key}
mkdir -p "$DIR"/{log,run,mon,osd,rgw}
DIR=$(cd "$DIR" && pwd)
[ -e "$DIR/ceph.conf" ] && { echo "$DIR already holds a cluster" >&2; exit 1; }
FSID=$(cat /proc/sys/kernel/random/uuid)
OSD_UUID=$(cat /proc/sys/kernel/random/uuid)

# ms mon client mode: radosgw asks for "secure", which cannot be had without cephx, and hangs for 300 s.
# osd crush chooseleaf type: must be here when the monitor's store is made.
# objecter tick interval: the default of 5 s makes some starts take that long.
# rgw gc: or deleted data stays in memory.
cat > "$DIR/ceph.conf" <<CONF
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:$MON_PORT/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc secure
log file = $DIR/log/\$name.log
log to stderr = false
err to stderr = true
admin socket = $DIR/run/\$name.asok
run dir = $DIR/run
crash dir = $DIR/run
objecter tick interval = 0.5
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 10000
[mon]
mon data = $DIR/mon
mon data avail warn = 1
mon data avail crit = 1
mon cluster log to file = false
mon osd initial require min compat client = luminous
mon tick interval = 1
paxos propose interval = 0.05
paxos min wait = 0.01
[osd]
osd data = $DIR/osd
osd objectstore = memstore
osd crush initial weight = 1
memstore device bytes = 4294967296
memstore page set = false
osd memory target = 1073741824
osd op num shards = 2
osd op num threads per shard = 2
osd heartbeat grace = 300
osd mclock skip benchmark = true
[client]
rgw rados pool pg num min = 1
rgw rados pool autoscale bias = 1
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$PORT
rgw data = $DIR/rgw
rgw thread pool size = 32
rgw enable usage log = false
rgw enable ops log = false
rgw enable apis = s3
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw dynamic resharding = false
rgw override bucket index max shards = 1
${RGW_LIFECYCLE_DAY:+rgw lc debug interval = $RGW_LIFECYCLE_DAY}
CONF

export CEPH_CONF="$DIR/ceph.conf"
background() {
  local name=$1; shift
  setsid "$@" </dev/null >>"$DIR/log/$name.out" 2>&1 &
  echo $! > "$DIR/run/$name.pid"
}
die() {
  echo "rgw-up: $1" >&2
  tail -n 8 "$DIR"/log/*.out >&2 || :
  "$(dirname "$0")/rgw-down.sh" "$DIR" || :
  exit 1
}

monmaptool --create --clobber --fsid "$FSID" --addv a "[v2:127.0.0.1:$MON_PORT]" "$DIR/monmap" >/dev/null
ceph-mon -i a --mkfs --monmap "$DIR/monmap" >>"$DIR/log/mon.out" 2>&1 || die "ceph-mon --mkfs"
background mon ceph-mon -f -i a
# making the OSD's store needs no monitor: it goes on while that starts
ceph-osd -i 0 --mkfs --osd-uuid "$OSD_UUID" --osd-data "$DIR/osd" >>"$DIR/log/osd.out" 2>&1 &
MKFS=$!
timeout 60 ceph --connect-timeout 30 osd new "$OSD_UUID" 0 >/dev/null 2>>"$DIR/log/mon.out" || die "osd new"
wait $MKFS || die "ceph-osd --mkfs"
background osd ceph-osd -f -i 0
timeout 90 radosgw-admin user create --uid=test --display-name=test --access-key="$ACCESS" --secret="$SECRET" \
  >"$DIR/run/user.json" 2>>"$DIR/log/admin.out" || die "user create"
background rgw radosgw -f -n client.rgw.a
for _ in $(seq 600); do
  (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null && exit 0
  kill -0 "$(cat "$DIR/run/rgw.pid")" 2>/dev/null || die "radosgw died"
  sleep 0.1
done
die "radosgw does not listen"
