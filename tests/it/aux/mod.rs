//! The normative sentences of `docs/aux-domains.md`, AX1 and on, in both flavours of the tables.
//!
//! The name of a test begins with the sentences that it shows, as in [`super::conformance`]; DMA
//! through tables of the guest's is shown by [`super::sequences`].

mod attach;
mod events;
mod features;
mod life;
mod messages;
mod shared;
mod tables;
mod wire;

use viommu_iotlb::{Device, FaultClass, FaultRecord};
use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Iova};

use crate::support::daemon::Daemon;
use crate::support::device::Dma;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::LINUX_FEATURES;
use crate::support::wire::{OK, Status};
use wire::Table;

/// The second endpoint, 0000:00:03.0, and one that has no PASIDs, 0000:00:04.0.
const SECOND: u32 = 0x18;
const PLAIN: u32 = 0x20;
/// No endpoint.
const NOBODY: u32 = 0xdead;

/// Width of the PASIDs of the first two.
const PASID_BITS: u32 = 4;

/// Refusals, as a device process sees them.
const UNMAPPED: Result<u64, FaultClass> = Err(FaultClass::Mapping);
const NOT_ATTACHED: Result<u64, FaultClass> = Err(FaultClass::NotAttached);

/// The structures that the daemon keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arch {
    Vtd,
    Smmu,
}

impl Arch {
    const fn option(self) -> &'static str {
        match self {
            Self::Vtd => "vtd",
            Self::Smmu => "smmuv3",
        }
    }

    /// A table that the endpoints take: four levels of 4 KiB at `root`.
    const fn table(self, root: u64) -> Table {
        // T0SZ = 16, EPD1, IPS = 48 bits
        const TCR: u64 = 16 | 1 << 23 | 5 << 32;
        match self {
            Self::Vtd => Table { format: 1, root, arguments: [0, 0] },
            Self::Smmu => Table { format: 2, root, arguments: [TCR, 0xff] },
        }
    }
}

/// A guest whose driver knows the extension, with two endpoints that have PASIDs, a device process
/// behind each, and one endpoint that has none. Nothing is attached, nothing enabled, and `bypass`
/// is 0.
struct Rig {
    daemon: Daemon,
    guest: Guest,
    devices: [Dma; 2],
    arch: Arch,
}

/// Runs `test` in both flavours.
fn in_both(test: impl Fn(Rig)) {
    for arch in [Arch::Vtd, Arch::Smmu] {
        test(Rig::start(arch, &[]));
    }
}

/// The same with AUX_ENABLE in force on both endpoints.
fn enabled_in_both(test: impl Fn(Rig)) {
    in_both(|mut rig| {
        rig.ok(&wire::enable(ENDPOINT));
        rig.ok(&wire::enable(SECOND));
        test(rig);
    });
}

impl Rig {
    fn start(arch: Arch, options: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("viommu-it-").tempdir().unwrap();
        let paths = ["02.0", "03.0"].map(|function| folder.path().join(function));
        let endpoints = paths.each_ref().map(|path| {
            let function = path.file_name().unwrap().display();
            format!("00:{function},socket={},pasid-bits={PASID_BITS}", path.display())
        });
        let mut all = vec!["--arch", arch.option(), "--boot-bypass", "off"];
        for endpoint in [&endpoints[0], &endpoints[1], "00:04.0"] {
            all.extend(["--endpoint", endpoint]);
        }
        all.extend(options);
        let daemon = Daemon::in_folder(folder, &all);
        let guest = Guest::with_features(&daemon, LINUX_FEATURES | wire::AUX | wire::BIND_TABLE);
        let devices = paths.map(|path| {
            let device = Device::connect(path).unwrap();
            let reader = device.reader().unwrap();
            Dma { device, reader }
        });
        Self { daemon, guest, devices, arch }
    }

    /// Sends a request, with all room that its answer needs.
    fn send(&mut self, request: &[u8]) -> Status {
        self.answer(request).0
    }

    /// The status, and what the answer carries before its tail.
    fn answer(&mut self, request: &[u8]) -> (Status, Vec<u8>) {
        let known = wire::SIZES.into_iter().find(|(kind, ..)| *kind == request[0]);
        let answer = self.guest.send(request, known.map_or(4, |(.., writable)| writable));
        let status = answer.status();
        (status, answer.bytes[..answer.bytes.len() - 4].to_vec())
    }

    /// Sends a request that has to succeed.
    fn ok(&mut self, request: &[u8]) {
        assert_eq!(self.send(request), OK, "{request:x?}");
    }

    /// AUX_ATTACH with a number.
    fn attach(&mut self, domain: u32, endpoint: u32, pasid: u32) -> Status {
        self.send(&wire::attach(domain, endpoint, pasid, 0))
    }

    /// AUX_ATTACH with PASID_ANY: the PASID that the device chose.
    fn attach_any(&mut self, domain: u32, endpoint: u32) -> Result<u32, Status> {
        let (status, fields) = self.answer(&wire::attach(domain, endpoint, wire::PASID_ANY, 0));
        assert_eq!(fields[4..], [0; 4], "reserved");
        let pasid = u32::from_le_bytes(fields[..4].try_into().unwrap());
        if status == OK { Ok(pasid) } else { Err(status) }
    }

    /// GET_ATTR.
    fn value(&mut self, domain: u32, endpoint: u32, attr: u16) -> Result<u64, Status> {
        let (status, fields) = self.answer(&wire::get_attr(domain, endpoint, attr));
        let value = u64::from_le_bytes(fields.try_into().unwrap());
        if status == OK { Ok(value) } else { Err(status) }
    }

    /// MAP of the page at `iova`, to read and write.
    fn map(&mut self, domain: u32, iova: u64, to: u64) -> Status {
        self.guest.map(domain, iova, iova | 0xfff, to, 3)
    }

    /// BIND_TABLE of a table at 0x7000 that the endpoints take.
    fn bind(&mut self, domain: u32, flags: u32, parent: u32) -> Status {
        let table = self.arch.table(0x7000);
        self.send(&wire::bind(domain, table, flags, parent))
    }

    /// Where a read of a page by the first endpoint leads, tagged or not.
    fn page(&self, pasid: u32, iova: u64) -> Result<u64, FaultClass> {
        page(&self.devices[0], pasid, iova)
    }
}

/// Where a read of a page leads; PASID 0 is none.
fn page(dma: &Dma, pasid: u32, iova: u64) -> Result<u64, FaultClass> {
    let guard = dma.reader.enter().unwrap();
    let pieces = guard.translate(Pasid::new(pasid), Iova::new(iova), 0x1000, Access::READ);
    let pieces: Result<Vec<_>, _> =
        pieces.map(|piece| piece.map(|piece| piece.gpa.raw())).collect();
    match pieces {
        Ok(pages) => Ok(pages[0]),
        Err(fault) => Err(FaultRecord::from(&fault).class),
    }
}
