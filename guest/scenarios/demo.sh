# What the demo shows, in the guest's own words.

for function in $disk_function $engine_function; do
	fact group "0000:$function is in IOMMU group $(group_at $function)"
done
fact iommu "$(dmesg | grep 'virtio_iommu.*input address' | sed 's/^[^]]*] //')"

within 30 disk_at $disk_function || fail disk "no disk"
disk=$(disk_at $disk_function)
ready go
fact sha256 "$(sha256sum "$disk" | cut -d ' ' -f 1)"
attempt written disk-check write "$disk" direct 9 0 8388608
drop_caches
attempt reread disk-check verify "$disk" buffered 9 0 8388608
fact sha256-after "$(sha256sum "$disk" | cut -d ' ' -f 1)"

user_space_driver
within 10 sh -c 'dmesg | grep -q "page fault.*0xff40002000"'
tell_faults
