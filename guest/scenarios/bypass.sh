# The IOMMU's bypass byte through a pause, reboots and a new VMM. Nothing is loaded yet.

iommu=/sys/bus/pci/devices/0000:00:01.0

# field AT BYTES: a number in the function's configuration space
field() { od -An -t "u$2" -j "$1" -N "$2" $iommu/config | tr -d ' '; }

# the address of bypass: in the structure of type 4 (virtio 1.4, 4.1.4), at 36 (5.13.4)
bypass_address() {
	local at=$(field 52 1) bar
	until [ "$(field "$at" 1)" = 9 ] && [ "$(field $((at + 3)) 1)" = 4 ]; do
		at=$(field $((at + 1)) 1)
		[ "$at" != 0 ] || return 1
	done
	bar=$(sed -n "$(($(field $((at + 4)) 1) + 1))s/ .*//p" $iommu/resource)
	echo $((bar + $(field $((at + 8)) 4) + 36))
}

# the function decodes its memory once a driver or this enables it
echo 1 >$iommu/enable
address=$(bypass_address) && ok address || fail address "no device configuration"
bypass() { fact "bypass.$1" $(($(devmem "$address" 8))); }
set_bypass() { devmem "$address" 8 "$1"; }

# answered: whether the disk ever answered its driver
answered() {
	local disk reads
	disk=$(disk_at $disk_function) && read -r reads _ <"/sys/block/${disk##*/}/stat" && [ "$reads" != 0 ]
}

# whole NAME: the disk is there and read whole
whole() {
	within 30 disk_at $disk_function || fail "$1" "no disk"
	attempt "$1" disk-check sum "$(disk_at $disk_function)" direct
}

ready boot
life=$answer
bypass "$life"
case $life in
# the IOMMU's driver is at work: what is attached is no concern of bypass
driven)
	load
	set_bypass 0
	bypass set
	ready pause
	bypass paused
	whole driven-sum
	reboot -f
	;;
again)
	load
	whole again-sum
	;;
# no driver for the IOMMU, so that the disk is attached to nothing
closed)
	set_bypass 0
	bypass set
	reboot -f
	;;
blocked)
	# the disk's driver waits in its first read
	load &
	ready refused
	if answered; then fail blocked "the disk answered"; else ok blocked; fi
	ready look
	echo b >/proc/sysrq-trigger
	sleep 1000
	;;
opened)
	set_bypass 1
	bypass reset
	load
	whole opened-sum
	set_bypass 0
	bypass left
	;;
anew)
	load
	whole anew-sum
	;;
esac
