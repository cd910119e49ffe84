//! `iommu=pt`: bypass domains. QEMU's own devices know nothing of our IOMMU and take addresses as
//! they come, so this is the mode in which they work behind it.

use std::time::Duration;

use crate::error::Result;
use crate::suite::set::{BARE, OwnDisk, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, OLDER_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "passthrough",
    about: "iommu=pt: QEMU's own virtio-blk and nvme, and our disk, in bypass domains",
    script: include_str!("../../../../guest/scenarios/passthrough.sh"),
    guests: OLDER_FIRST,
    arch: Arch::Vtd,
    // x86's own word for it, and the one that all know
    set: Set { append: "iommu=pt iommu.passthrough=1", disks: &[64], own: &[VIRTIO, NVME], ..BARE },
    limit: Duration::from_secs(180),
    play,
};

const VIRTIO: OwnDisk = OwnDisk {
    slot: 2,
    image: "virtio.img",
    arguments: &[
        "-drive",
        "if=none,id=virtio,format=raw,file=virtio.img",
        "-device",
        "virtio-blk-pci,drive=virtio,bus=pcie.0,addr=2,disable-legacy=on,iommu_platform=on",
    ],
};

const NVME: OwnDisk = OwnDisk {
    slot: 5,
    image: "nvme.img",
    arguments: &[
        "-drive",
        "if=none,id=nvme,format=raw,file=nvme.img",
        "-device",
        "nvme,drive=nvme,serial=1,bus=pcie.0,addr=5",
    ],
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    for (name, image) in [("virtio", "virtio.img"), ("nvme", "nvme.img"), ("own", "disk.img")] {
        compare::equal("the group's type", talk.fact(&format!("type.{name}"))?, "identity")?;
        compare::checksum(talk.check(&format!("sum.{name}"))?, &stage.file(image))?;
    }
    counters.at_least("attach", 3)?;
    compare::equal("the number of maps", "0", &counters.get("map")?.to_string())?;
    Ok("three disks in identity groups, no map asked for".to_owned())
}
