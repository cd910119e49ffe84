# A driver in user space: VFIO's type1 container over the DMA engine.

user_space_driver
# the kernel tells of each blocked access; the last one may come a moment later
within 10 sh -c 'dmesg | grep -q "page fault.*0xff40002000"'
tell_faults
# properties of the IOMMU that the kernel does not know
fact unknown "$(dmesg | grep -c 'virtio_iommu.*unknown')"
