# Which devices are behind the IOMMU, and what the kernel says of it.

# Linux before 6.15 gives a device its group when a driver takes it, and no other driver knows the engine
engine_to_vfio
groups=0
for group in /sys/kernel/iommu_groups/*; do
	[ -d "$group" ] || continue
	groups=$((groups + 1))
	for device in "$group"/devices/*; do
		fact "group.${group##*/}" "$(basename "$device") $(cat "$group/type")"
	done
	while read -r region; do
		fact "reserved.${group##*/}" "$region"
	done <"$group/reserved_regions"
done
fact groups $groups
# what told the kernel: an ACPI table, or a device tree
if dmesg | grep -q 'ACPI: VIOT'; then
	fact topology acpi
elif [ -e /proc/device-tree/pcie@10000000/iommu-map ]; then
	fact topology device-tree
else
	fail topology "nothing tells the kernel what is behind the IOMMU"
fi
fact iommu "$(dmesg | grep 'virtio_iommu.*input address' | sed 's/^[^]]*] //')"
