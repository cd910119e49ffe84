# A driver in user space: VFIO's type1 container over the DMA engine.

engine=0000:00:04.0
echo vfio-pci >/sys/bus/pci/devices/$engine/driver_override
echo $engine >/sys/bus/pci/drivers_probe
group=$(basename "$(readlink /sys/bus/pci/devices/$engine/iommu_group)")
within 10 test -c "/dev/vfio/$group" || fail bound "no /dev/vfio/$group"
vfio-dma "$group" $engine >&3 || fail vfio-dma "ended with $?"

# the kernel tells of each blocked access, as it limits the rate not necessarily of all
dmesg | grep 'virtio_iommu.*page fault' | sed 's/^[^]]*] //' | while read -r fault; do
	fact fault "$fault"
done
