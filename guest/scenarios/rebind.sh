# The disk's driver lets go and comes back; the DMA engine goes to user space and back.

within 30 disk_at $disk_function && ok disk || fail disk "no disk"
for round in 0 1 2 3; do
	rebind $disk_function virtio-pci
	within 30 disk_at $disk_function || fail "disk.$round" "the disk did not come back"
	attempt "sum.$round" disk-check sum "$(disk_at $disk_function)" direct
	user_space_driver
	ok "user.$round"
	rebind $engine_function vfio-pci
	ready round
done
