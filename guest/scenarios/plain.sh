# A disk and no IOMMU.

groups=$(ls /sys/kernel/iommu_groups 2>/dev/null | wc -l)
[ "$groups" = 0 ] && ok groups none || fail groups "$groups groups without an IOMMU"
within 30 test -b /dev/vda && ok disk || fail disk "no /dev/vda"
attempt sum disk-check sum /dev/vda direct
attempt content disk-check verify /dev/vda buffered "$(option seed)" 0 "$(option bytes)"
attempt write disk-check write /dev/vda direct 9 4194304 8388608
drop_caches
attempt reread disk-check verify /dev/vda buffered 9 4194304 8388608
attempt restore disk-check write /dev/vda buffered "$(option seed)" 4194304 8388608
