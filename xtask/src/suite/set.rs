//! What a scenario wants around its guest.

/// The machine and what is on its bus.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set {
    /// What is between the devices and memory.
    pub(crate) iommu: Iommu,
    /// How long the daemon looks at the request queue after work before it sleeps, microseconds; `None`: as
    /// it decides by itself.
    pub(crate) poll_us: Option<u32>,
    /// More words for the kernel's command line.
    pub(crate) append: &'static str,
    /// vfio-user disks behind the IOMMU, of that many MiB each; at most as many as there are [`DISKS`].
    pub(crate) disks: &'static [u64],
    /// Request queues of each of them.
    pub(crate) queues: u8,
    /// vfio-user DMA engines behind the IOMMU; at most as many as there are [`ENGINES`].
    pub(crate) engines: usize,
    /// QEMU's own disks behind the IOMMU.
    pub(crate) own: &'static [OwnDisk],
    /// Whether the guest may start anew.
    pub(crate) reboots: bool,
    /// Whether firmware looks at the disks, as it does unless it is told to keep to the boot order.
    pub(crate) firmware_reads: bool,
    /// Processors.
    pub(crate) cpus: u8,
    /// Main memory, MiB: one number for each NUMA node.
    pub(crate) memory_mib: &'static [u32],
}

/// A guest with our IOMMU and nothing behind it.
pub(crate) const BARE: Set = Set {
    iommu: Iommu::Ours,
    poll_us: None,
    append: "",
    disks: &[],
    queues: 2,
    engines: 0,
    own: &[],
    reboots: false,
    firmware_reads: true,
    cpus: 2,
    memory_mib: &[1024],
};

/// What is between the devices and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Iommu {
    /// Nothing: the devices take addresses as the guest gives them.
    None,
    /// The daemon.
    Ours,
    /// QEMU's own virtio-iommu, which tells device processes of each mapping by a message.
    Qemus,
}

/// A disk that QEMU itself emulates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnDisk {
    /// Its device number.
    pub(crate) slot: u8,
    /// Its image, in the run's folder.
    pub(crate) image: &'static str,
    /// QEMU's arguments for it.
    pub(crate) arguments: &'static [&'static str],
}

/// The IOMMU's device number.
pub(crate) const IOMMU_SLOT: u8 = 1;

/// Where a device process of ours is on the bus, and the names of its files in the run's folder.
#[derive(Debug)]
pub(crate) struct Seat {
    /// The name of the process.
    pub(crate) name: &'static str,
    /// Its device number.
    pub(crate) slot: u8,
    /// Its socket for QEMU.
    pub(crate) socket: &'static str,
    /// The daemon's socket for it.
    pub(crate) iotlb: &'static str,
    /// How wide its PASIDs are; 0 for a device that has none.
    pub(crate) pasid_bits: u8,
}

/// The disks.
pub(crate) const DISKS: [Seat; 2] = [
    Seat { name: "disk", slot: 3, socket: "disk.sock", iotlb: "disk.iotlb", pasid_bits: 0 },
    Seat { name: "second", slot: 6, socket: "second.sock", iotlb: "second.iotlb", pasid_bits: 0 },
];

/// The DMA engines.
pub(crate) const ENGINES: [Seat; 2] = [
    Seat { name: "engine", slot: 4, socket: "engine.sock", iotlb: "engine.iotlb", pasid_bits: 20 },
    Seat { name: "other", slot: 7, socket: "other.sock", iotlb: "other.iotlb", pasid_bits: 20 },
];

impl Set {
    /// Where the disks are.
    pub(crate) fn disk_seats(&self) -> impl Iterator<Item = &'static Seat> + use<> {
        DISKS.iter().take(self.disks.len())
    }

    /// Where the DMA engines are.
    pub(crate) fn engine_seats(&self) -> impl Iterator<Item = &'static Seat> + use<> {
        ENGINES.iter().take(self.engines)
    }

    /// The device processes behind the IOMMU.
    pub(crate) fn seats(&self) -> impl Iterator<Item = &'static Seat> {
        self.disk_seats().chain(self.engine_seats())
    }

    /// The device numbers of what is behind the IOMMU.
    pub(crate) fn slots(&self) -> Vec<u8> {
        let ours = self.seats().map(|seat| seat.slot);
        self.own.iter().map(|disk| disk.slot).chain(ours).collect()
    }
}
