# A disk behind the IOMMU, read and written whole, every byte compared.

seed=$(option seed)
bytes=$(option bytes)
part=$((bytes / 8))
within 30 test -b /dev/vda && ok disk "$(function_of vda)" || fail disk "no /dev/vda"
fact group "$(basename "$(readlink /sys/block/vda/device/../iommu_group)") $(cat /sys/block/vda/device/../iommu_group/type)"

attempt sum disk-check sum /dev/vda direct
attempt sum-buffered disk-check sum /dev/vda buffered
attempt content disk-check verify /dev/vda direct "$seed" 0 "$bytes"

# two stretches are written anew, one past the cache of the guest and one through it
attempt write-direct disk-check write /dev/vda direct $((seed + 1)) 0 $part
attempt write-buffered disk-check write /dev/vda buffered $((seed + 2)) $part $part
drop_caches
attempt read-direct disk-check verify /dev/vda direct $((seed + 2)) $part $part
attempt read-buffered disk-check verify /dev/vda buffered $((seed + 1)) 0 $part
attempt rest disk-check verify /dev/vda direct "$seed" $((2 * part)) $((bytes - 2 * part))
attempt sum-after disk-check sum /dev/vda direct
