# Bypass domains: addresses pass unchanged, for devices of QEMU's own and for ours.

for disk in virtio=00:02.0 nvme=00:05.0 own=$disk_function; do
	name=${disk%%=*}
	address=${disk#*=}
	within 30 disk_at "$address" || fail "disk.$name" "no disk at $address"
	group=$(group_at "$address")
	fact "type.$name" "${group#* }"
	device=$(disk_at "$address")
	attempt "sum.$name" disk-check sum "$device" direct
	attempt "write.$name" disk-check write "$device" direct 9 1048576 1048576
	attempt "reread.$name" disk-check verify "$device" direct 9 1048576 1048576
	attempt "sum.$name" disk-check sum "$device" direct
done
