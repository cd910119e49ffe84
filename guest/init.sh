#!/bin/busybox sh
# The first process of a test guest: prepares the system, runs one scenario, powers off.
#
# Two serial lines: the first is the console, for people; the second carries the talk with the
# host, a line each:
#   check NAME: ok WHAT      check NAME: FAIL WHY      fact NAME: VALUE
#   ready NAME               then the guest waits for one line from the host
# The last line is "ready end".

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp

# the second line of the machine: a UART of QEMU's on Arm, of a PC else
talk=/dev/ttyAMA1
[ -c $talk ] || talk=/dev/ttyS1
stty -F $talk raw -echo
exec 3<>$talk

say() { echo "$*" >&3; }
# the first word is the name
ok() { local name=$1; shift; say "check $name: ok $*"; }
fail() { local name=$1; shift; say "check $name: FAIL $*"; }
fact() { local name=$1; shift; say "fact $name: $*"; }

# ready NAME: waits for the host; its line is then in $answer
ready() { say "ready $1"; read -r answer <&3; }

# attempt NAME COMMAND...: a check that passes when the command does; its last line is what it says
attempt() {
	# several may be under way at once
	local name=$1 out=/tmp/out.$1
	shift
	if "$@" >"$out" 2>&1; then ok "$name" "$(tail -n 1 "$out")"; else fail "$name" "$(tail -n 1 "$out")"; fi
}

# within SECONDS COMMAND...: runs the command until it succeeds; fails when it never does
within() {
	local tries=$(($1 * 10))
	shift
	until "$@" >/dev/null 2>&1; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || return 1
		usleep 100000
	done
}

# option NAME: the value of viommu.NAME= on the kernel's command line
option() { sed -n "s/.*\bviommu\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

# forget what is cached of the disks, so that the next read comes from the device
drop_caches() { sync; echo 3 >/proc/sys/vm/drop_caches; }

# disk_at ADDRESS: the block device of a PCI function
disk_at() {
	local block
	for block in /sys/block/*; do
		case $(readlink -f "$block") in */0000:$1/*) echo "/dev/${block##*/}" && return ;; esac
	done
	return 1
}

# group_at ADDRESS: number and type of a PCI function's group
group_at() {
	local group
	group=$(readlink -f "/sys/bus/pci/devices/0000:$1/iommu_group")
	echo "${group##*/} $(cat "$group/type")"
}

# the devices of our own, by the addresses that the host gives them
disk_function=00:03.0
engine_function=00:04.0
other_engine_function=00:07.0
second_function=00:06.0

# rebind ADDRESS DRIVER: the driver lets the function go, and the one that fits takes it
rebind() {
	echo "0000:$1" >"/sys/bus/pci/drivers/$2/unbind"
	echo "0000:$1" >/sys/bus/pci/drivers_probe
}

# hands the DMA engine to VFIO
engine_to_vfio() {
	echo vfio-pci >/sys/bus/pci/devices/0000:$engine_function/driver_override
	echo 0000:$engine_function >/sys/bus/pci/drivers_probe
}

# the same, and runs the user-space driver; its checks go to the host
user_space_driver() {
	engine_to_vfio
	local group
	group=$(group_at $engine_function)
	group=${group%% *}
	within 10 test -c "/dev/vfio/$group" || fail bound "no /dev/vfio/$group"
	# stage 1 of an SMMUv3 has no pages that are written and not read
	local reads=refused
	[ "$(option arch)" = smmuv3 ] && reads=allowed
	vfio-dma "$group" 0000:$engine_function $reads >&3 || fail vfio-dma "ended with $?"
}

# the faults that the kernel was told of
tell_faults() {
	dmesg | grep 'virtio_iommu.* fault from' | sed 's/^[^]]*] //' | while read -r fault; do
		fact fault "$fault"
	done
}

# load [but NAME]: the modules in their order
load() {
	local module parameters
	for module in /modules/*; do
		# a kernel may have everything built in
		[ -e "$module" ] || continue
		case $module in *-"${2:-none}".ko) continue ;; esac
		parameters=
		# virtio-iommu remaps no interrupts, and x86 then wants this said
		case $module in *vfio-iommu-type1*) parameters=allow_unsafe_interrupts=1 ;; esac
		insmod "$module" $parameters || fail load "$module"
	done
}

# a scenario may have a reason for another way
power_off() { poweroff -f; }

scenario=$(option scenario)
say "fact kernel: $(uname -r)"
# a scenario may load them itself, in its own time
[ "$(option load)" = later ] || load
. "/scenarios/$scenario.sh"
dmesg >/tmp/dmesg
echo "the guest's own log:"
cat /tmp/dmesg
ready end
power_off
