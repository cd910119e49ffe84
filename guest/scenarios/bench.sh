# The disk's speed, block size by block size; the host looks at its clocks between two of them.

within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
# once through, so that the host has the image in memory
attempt warm disk-check sum "$disk" direct
for bytes in 4096 65536 1048576; do
	for direction in read write; do
		ready begin
		attempt "$direction.$bytes" disk-bench "$disk" $direction $bytes 4 2
		ready end-of-one
	done
done
