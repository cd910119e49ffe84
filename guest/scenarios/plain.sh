# A disk and no IOMMU, or none that the guest knows of.

groups=$(ls /sys/kernel/iommu_groups 2>/dev/null | wc -l)
[ "$groups" = 0 ] && ok groups none || fail groups "$groups groups"
within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
attempt sum disk-check sum $disk direct
attempt content disk-check verify $disk buffered "$(option seed)" 0 "$(option bytes)"
attempt write disk-check write $disk direct 9 4194304 8388608
drop_caches
attempt reread disk-check verify $disk buffered 9 4194304 8388608
attempt restore disk-check write $disk buffered "$(option seed)" 4194304 8388608
