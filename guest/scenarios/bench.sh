# The disk's speed, block size by block size; the host looks at its clocks between two of them.

within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
# once through, so that the host has the image in memory
attempt warm disk-check sum "$disk" direct
for kind in "4096 small" "65536 small" "1048576 small" "1048576 huge"; do
	set -- $kind
	for direction in read write; do
		ready begin
		attempt "$direction.$1.$2" disk-bench "$disk" $direction $1 $2 4 2
		ready end-of-one
	done
done
