# A disk behind the IOMMU, read and written whole, every byte compared.

seed=$(option seed)
part=$(($(option bytes) / 8))
within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
fact group "$(group_at $disk_function)"

ready go
attempt sum disk-check sum "$disk" direct

# two stretches are written anew, one past the cache of the guest and one through it
attempt write-direct disk-check write "$disk" direct $((seed + 1)) 0 $part
attempt write-buffered disk-check write "$disk" buffered $((seed + 2)) $part $part
drop_caches
attempt read-direct disk-check verify "$disk" direct $((seed + 2)) $part $part
attempt read-buffered disk-check verify "$disk" buffered $((seed + 1)) 0 $part
attempt sum-after disk-check sum "$disk" buffered
