# Which devices are behind the IOMMU, and what the kernel says of it.

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
dmesg | grep -q 'ACPI: VIOT' && ok viot || fail viot "the kernel saw no VIOT"
fact iommu "$(dmesg | grep 'virtio_iommu.*input address' | sed 's/^[^]]*] //')"
