# Two guests. The first one's IOMMU goes away in the middle of I/O; the next one finds a new one.

ready boot
boot=$answer
seed=$(option seed)
bytes=$(option bytes)
part=$((bytes / 8))
within 30 disk_at $disk_function && ok "$boot-disk" || fail "$boot-disk" "no disk"
disk=$(disk_at $disk_function)

case $boot in
first)
	attempt first-write disk-check write "$disk" direct $((seed + 1)) 0 $part
	# the second eighth is what is in flight when the IOMMU goes
	while :; do disk-check write "$disk" direct $((seed + 2)) $part $part; done &
	within 10 sh -c '[ "$(cat /sys/block/vda/inflight | tr -d " ")" != 00 ]' && ok flying || fail flying "no I/O in flight"
	ready kill
	# from here on the host looks at us from outside: the next request to the IOMMU is never answered
	sleep 1000
	;;
second)
	attempt second-start disk-check verify "$disk" direct $((seed + 1)) 0 $part
	attempt second-rest disk-check verify "$disk" direct "$seed" $((2 * part)) $((6 * part))
	attempt second-write disk-check write "$disk" direct $((seed + 3)) $part $part
	attempt second-sum disk-check sum "$disk" direct
	user_space_driver
	;;
esac
