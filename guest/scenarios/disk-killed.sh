# The disk's process is killed in the middle of I/O. Another device's maps and unmaps go on. The next
# guest finds a new process, and the disk as it was.

ready boot
within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)

case $answer in
first)
	(while disk-check sum "$disk" direct; do :; done) &
	within 10 sh -c '[ "$(cat /sys/block/vda/inflight | tr -d " ")" != 00 ]' && ok reading || fail reading "no I/O in flight"
	ready kill
	user_space_driver
	tell_faults
	# a driver's shutdown waits for its device, and this one is gone: off without shutting it down
	power_off() { echo b >/proc/sysrq-trigger; }
	;;
second)
	attempt content disk-check verify "$disk" direct "$(option seed)" 0 "$(option bytes)"
	attempt sum disk-check sum "$disk" direct
	;;
esac
