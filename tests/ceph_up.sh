#!/bin/bash
# A one-disk Ceph cluster in a folder: a monitor and an in-memory object store, no systemd, no passwords, all on 127.0.0.1.
#
#   ceph_up.sh FOLDER MONITOR_PORT GATEWAY_PORT
#
# Says "ready" on stdout once the cluster takes the gateway's first command, then stays until it is told to end, and takes
# its daemons with it.  The caller starts the gateway (radosgw -n client.rgw -c FOLDER/ceph.conf), so that it can be
# killed and restarted without losing the data.  Needs Debian's radosgw, ceph-mon and ceph-osd.
set -euo pipefail
dir=${1:?folder} monitor=${2:?monitor port} gateway=${3:?gateway port}
mkdir -p "$dir"/{mon,osd,log,run}
fsid=$(cat /proc/sys/kernel/random/uuid)
osd=$(cat /proc/sys/kernel/random/uuid)

# Short proposals, one placement group and tcp_nodelay take the start from 13 s to 2 s, and a GET from 50 ms to 5 ms.
# The gateway hangs for ever unless its own section says crc and none.
cat > "$dir/ceph.conf" <<CONF
[global]
fsid = $fsid
mon_host = v2:127.0.0.1:$monitor
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv4 = true
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = true
run_dir = $dir/run
admin_socket = $dir/run/\$name.asok
log_file = $dir/log/\$name.log
pid_file = $dir/run/\$name.pid
crash_dir = $dir/run
keyring = $dir/keyring
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_tick_interval = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
# A full laptop disk must not stop an object store that lives in memory.
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_osd_full_ratio = 0.99
mon_osd_backfillfull_ratio = 0.98
mon_osd_nearfull_ratio = 0.97
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
[mon.a]
mon_data = $dir/mon
[osd.0]
osd_data = $dir/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:$gateway tcp_nodelay=1
ms_mon_client_mode = crc
auth_client_required = none
rgw_enable_usage_log = false
rgw_thread_pool_size = 16
rgw_num_rados_handles = 1
# With the cache, a new bucket waits for half a minute for a killed gateway to answer.
rgw_cache_enabled = false
rgw_dynamic_resharding = false
rgw_override_bucket_index_max_shards = 1
rgw_gc_max_objs = 4
rgw_lc_max_objs = 4
rgw_usage_max_shards = 1
rgw_data_log_num_shards = 4
rgw_md_log_max_shards = 4
CONF
conf=(-c "$dir/ceph.conf")

daemon() {  # in the foreground of a child that dies with this script, kill -9 included
    (exec setpriv --pdeathsig KILL "$@" -f "${conf[@]}" > "$dir/log/$1.out" 2>&1) &
}
trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT
trap 'exit 143' TERM INT

monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$monitor]" "$dir/monmap" > /dev/null
ceph-mon --mkfs -i a --monmap "$dir/monmap" "${conf[@]}" 2> "$dir/log/mon-mkfs.err"
daemon ceph-mon -i a
timeout 150 ceph "${conf[@]}" osd new "$osd" 0 > /dev/null
ceph-osd --mkfs -i 0 --osd-uuid "$osd" "${conf[@]}" 2> "$dir/log/osd-mkfs.err"
daemon ceph-osd -i 0
for _ in $(seq 100); do
    timeout 10 ceph "${conf[@]}" osd stat 2> /dev/null | grep -q '1 up' && break
    sleep 0.1
done
timeout 40 radosgw-admin "${conf[@]}" -n client.rgw user create --uid=atlas --display-name=atlas \
    --access-key=AKATLAS --secret=SKATLASSECRET > "$dir/log/user.out" 2>&1
echo ready
wait
