# Two lives of a guest. The disk is written when the host ends the first: Linux' own way down can hang
# there, for its IOMMU's driver waits for ever for a queue that it has just declared broken (__viommu_sync_req).

ready boot
boot=$answer
seed=$(option seed)
bytes=$(option bytes)
part=$((bytes / 8))
within 30 disk_at $disk_function && ok "$boot-disk" || fail "$boot-disk" "no disk"
disk=$(disk_at $disk_function)

case $boot in
first)
	attempt first-content disk-check verify "$disk" direct "$seed" 0 "$bytes"
	attempt first-write disk-check write "$disk" direct $((seed + 1)) 0 $part
	attempt first-sum disk-check sum "$disk" direct
	ready first-summed
	# the third eighth is what is in flight when the machine is reset
	while :; do disk-check write "$disk" direct $((seed + 3)) $((2 * part)) $part; done &
	while :; do disk-check sum "$disk" direct; done &
	within 10 sh -c '[ "$(cat /sys/block/vda/inflight | tr -d " ")" != 00 ]' || fail flying "no I/O in flight"
	ready flying
	;;
second)
	attempt second-start disk-check verify "$disk" direct $((seed + 1)) 0 $part
	attempt second-rest disk-check verify "$disk" direct "$seed" $((3 * part)) $((5 * part))
	attempt second-write disk-check write "$disk" buffered $((seed + 2)) $part $part
	attempt second-sum disk-check sum "$disk" direct
	ready second-summed
	;;
esac
