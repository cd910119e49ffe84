# Two disks in two groups, used at once; one goes away and comes back under the other's I/O.

within 30 disk_at $disk_function && within 30 disk_at $second_function && ok disks || fail disks "not both"
first=$(disk_at $disk_function)
second=$(disk_at $second_function)
seed=$(option seed)
bytes=$(option bytes)
part=$((bytes / 4))
fact group.first "$(group_at $disk_function)"
fact group.second "$(group_at $second_function)"

# both at once, each its own content
attempt first.write disk-check write "$first" direct $((seed + 10)) 0 $part &
attempt second.write disk-check write "$second" buffered $((seed + 20)) 0 $part
wait
drop_caches
attempt first.rest disk-check verify "$first" direct "$seed" $part $((3 * part)) &
attempt second.rest disk-check verify "$second" direct $((seed + 1)) $part $((3 * part))
wait

# the second one's domain ends and another begins while the first one's is in use
(while [ ! -e /tmp/stop ]; do disk-check verify "$first" direct $((seed + 10)) 0 $part >/tmp/reader || fail reader "$(cat /tmp/reader)"; done) &
reader=$!
for round in 0 1 2; do
	rebind $second_function virtio-pci
	within 30 disk_at $second_function || fail "second.$round" "it did not come back"
	attempt "second.$round" disk-check verify "$(disk_at $second_function)" direct $((seed + 20)) 0 $part
done
touch /tmp/stop
wait $reader
attempt first.sum disk-check sum "$first" direct
attempt second.sum disk-check sum "$(disk_at $second_function)" direct
