# The disk with an unmap after each request.

within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
seed=$(option seed)
part=$(($(option bytes) / 4))
fact group "$(group_at $disk_function)"
attempt content disk-check verify "$disk" direct "$seed" 0 $((4 * part))
attempt write disk-check write "$disk" buffered $((seed + 1)) 0 $part
drop_caches
attempt reread disk-check verify "$disk" direct $((seed + 1)) 0 $part
attempt sum disk-check sum "$disk" buffered
