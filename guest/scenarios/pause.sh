# The host stops the machine while the disk is read and written.

within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
part=$(($(option bytes) / 8))

(while [ ! -e /tmp/stop ]; do disk-check sum "$disk" direct >/tmp/reader || fail reader "$(cat /tmp/reader)"; done) &
reader=$!
for round in 0 1 2 3 4 5 6 7 8 9; do
	disk-check write "$disk" direct $((100 + round)) 0 $part >/tmp/writer.$round &
	writer=$!
	ready pause
	wait $writer || fail "write.$round" "$(cat /tmp/writer.$round)"
	attempt "verify.$round" disk-check verify "$disk" direct $((100 + round)) 0 $part
done
touch /tmp/stop
wait $reader
attempt rest disk-check verify "$disk" direct "$(option seed)" $part $((7 * part))
attempt sum disk-check sum "$disk" direct
