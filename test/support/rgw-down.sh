#!/usr/bin/env bash
# rgw-down.sh DIR: ends the daemons that rgw-up.sh started there, by pid, and removes DIR.
DIR=$(cd "${1:?dir}" 2>/dev/null && pwd) || exit 0
for name in rgw osd mon; do
  pid=$(cat "$DIR/run/$name.pid" 2>/dev/null) || continue
  # only the process we started: the number may be somebody else's by now
  grep -qazF "CEPH_CONF=$DIR/ceph.conf" "/proc/$pid/environ" 2>/dev/null || continue
  kill -KILL "$pid" 2>/dev/null
done
for _ in $(seq 50); do rm -rf "$DIR" 2>/dev/null && exit 0; sleep 0.05; done
exit 0
