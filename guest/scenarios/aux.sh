# Our own driver instead of the kernel's: the sequences of auxiliary domains, with real DMA.

load but virtio-iommu
iommu_function=00:01.0
# virtio-pci has it, and nobody behind; it is taken away from there
driver=$(readlink -f /sys/bus/pci/devices/0000:$iommu_function/driver)
fact driver "${driver##*/}"
aux 0000:$iommu_function 0000:$engine_function 0000:$other_engine_function >&3 || fail aux "ended with $?"
