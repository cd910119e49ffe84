# Four processors, each with a queue of the disk and writing through it; a driver in user space beside them.

within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
seed=$(option seed)
part=$(($(option bytes) / 4))
fact cpus "$(grep -c '^processor' /proc/cpuinfo)"
fact queues "$(ls "/sys/block/${disk##*/}/mq" | wc -l)"

for cpu in 0 1 2 3; do
	attempt "write.$cpu" taskset $((1 << cpu)) disk-check write "$disk" direct $((seed + cpu)) $((cpu * part)) $part &
done
user_space_driver
wait
# what one has written, another reads
for cpu in 0 1 2 3; do
	other=$(((cpu + 1) % 4))
	attempt "verify.$cpu" taskset $((1 << other)) disk-check verify "$disk" direct $((seed + cpu)) $((cpu * part)) $part &
done
wait
attempt sum disk-check sum "$disk" direct
