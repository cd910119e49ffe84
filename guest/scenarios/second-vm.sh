# What each of two guests does, one after the other, with the same devices.

within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
attempt write disk-check write "$disk" direct 5 0 8388608
attempt sum disk-check sum "$disk" direct
user_space_driver
