# Six gigabytes, of which nearly all is taken: buffers come from above 4 GiB, and from reclaim.

# squeeze NODE MIB: takes all of a node's free memory but so many MiB, without touching it
squeeze() {
	local node=/sys/devices/system/node/node$1
	local free=$(sed -n 's/.*MemFree: *\([0-9]*\) kB/\1/p' $node/meminfo)
	echo $(((free / 1024 - $2) / 2)) >$node/hugepages/hugepages-2048kB/nr_hugepages
	sed -n 's/.*MemFree: *\([0-9]*\) kB/\1/p' $node/meminfo
}

# pages that were taken back from the cache
reclaimed() { sed -n 's/^pgsteal_\(kswapd\|direct\) //p' /proc/vmstat | awk '{ sum += $1 } END { print sum }'; }

within 30 disk_at $disk_function && ok disk || fail disk "no disk"
disk=$(disk_at $disk_function)
seed=$(option seed)
bytes=$(option bytes)
fact free "$(squeeze 0 64) $(squeeze 1 96)"
before=$(reclaimed)

# the processors are in the second node, which lies above 4 GiB
attempt high disk-check sum-high "$disk" direct
attempt content disk-check verify "$disk" buffered "$seed" 0 "$bytes"
attempt write disk-check write "$disk" buffered $((seed + 1)) 0 $((bytes / 2))
drop_caches
attempt reread disk-check verify "$disk" buffered $((seed + 1)) 0 $((bytes / 2))
attempt sum disk-check sum "$disk" buffered
fact reclaimed $(($(reclaimed) - before))
