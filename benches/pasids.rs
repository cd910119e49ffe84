//! `cargo bench --bench pasids`: all PASIDs of one endpoint, attached to 64 Ki domains.
//!
//! State machine and software backend in one process, so that the memory of both shows. What a PASID
//! takes beyond its entry in the shared tables has to stay below [`LIMIT_BYTES`]; the program ends with
//! a failure if it does not. `--quick` attaches fewer. Run by `cargo test`, it does that and judges
//! nothing: memory is measured in a build that is optimised.

use std::error::Error;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use viommu::iommu::{EndpointSpec, Iommu, Settings};
use viommu::protocol::{AuxAttach, PasidChoice, Request, Status};
use viommu_backend::{DevicePlace, DomainId, HostIommu, SoftwareConfig, SoftwareIommu};
use viommu_iotlb::{Arch, HubConfig, StuckPolicy};
use viommu_pasid::EndpointId;
use viommu_pgtable::PhysAddr;

const ENDPOINT: EndpointId = EndpointId::new(0x10);
/// PCIe's widest.
const PASID_BITS: u8 = 20;
/// As many as the default lets a guest have.
const DOMAINS: u32 = 1 << 16;
/// Requests between two waits for device processes: what a guest has in its queue.
const BATCH: u32 = 128;
/// The promise, bytes for each attached PASID.
const LIMIT_BYTES: u64 = 200;

type Failure = Box<dyn Error>;

/// One IOMMU with one endpoint.
struct Machine {
    iommu: Iommu,
    tables: SoftwareIommu,
    attached: u32,
}

impl Machine {
    fn new(arch: Arch) -> Result<Self, Failure> {
        let table_base = PhysAddr::new(match arch {
            Arch::Vtd => 1 << 51,
            Arch::SmmuV3 => 1 << 47,
        });
        let hub = HubConfig {
            arch,
            table_base,
            table_bytes: 1 << 30,
            stuck: Duration::from_secs(1),
            policy: StuckPolicy::Disconnect,
        };
        let (input_bits, page_size_mask) =
            (Settings::DEFAULT_INPUT_BITS, Settings::DEFAULT_PAGE_SIZES);
        let mut tables = SoftwareIommu::new(SoftwareConfig { input_bits, page_size_mask, hub })?;
        tables.add_endpoint(&DevicePlace {
            endpoint: ENDPOINT,
            pasid_bits: PASID_BITS,
            socket: None,
        })?;
        let mut iommu = Iommu::new(Settings::default(), vec![EndpointSpec::x86(ENDPOINT)])?;
        iommu.start(&mut tables)?;
        let mut machine = Self { iommu, tables, attached: 0 };
        machine.request(&Request::AuxEnable(ENDPOINT))?;
        Ok(machine)
    }

    fn request(&mut self, request: &Request) -> Result<(), Failure> {
        match self.iommu.request(&mut self.tables, request).status() {
            Status::OK => Ok(()),
            status => Err(format!("{request:?}: {status}").into()),
        }
    }

    /// Attaches PASIDs until there are `count`, one domain after the other; time for each.
    fn attach_up_to(&mut self, count: u32) -> Result<Duration, Failure> {
        let (start, before) = (Instant::now(), self.attached);
        while self.attached < count {
            self.request(&Request::AuxAttach(AuxAttach {
                domain: DomainId::new(self.attached % DOMAINS),
                endpoint: ENDPOINT,
                pasid: PasidChoice::Any,
                page_request: false,
            }))?;
            self.attached += 1;
            if self.attached.is_multiple_of(BATCH) {
                self.tables.sync();
                self.iommu.synced();
            }
        }
        Ok(start.elapsed() / (count - before).max(1))
    }
}

/// Time of a device reset for each PASID that it detaches.
fn reset(machine: &mut Machine) -> Duration {
    let (start, attached) = (Instant::now(), machine.attached);
    machine.iommu.reset(&mut machine.tables);
    machine.tables.sync();
    machine.iommu.synced();
    machine.attached = 0;
    start.elapsed() / attached.max(1)
}

/// Private memory of this process, bytes: the tables, which are shared, are not in it.
fn private_bytes() -> Result<u64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no RssAnon")?;
    Ok(kib.parse::<u64>()? << 10)
}

/// Attaches everything and prints a line for each part; memory for each PASID of the last.
fn measure(name: &str, arch: Arch, last: u32) -> Result<u64, Failure> {
    let mut machine = Machine::new(arch)?;
    let mut per_pasid = 0;
    for (count, what) in [(1 << 10, "new domain"), (DOMAINS, "new domain"), (last, "known domain")]
    {
        let count = count.min(last);
        let (bytes, before) = (private_bytes()?, machine.attached);
        let each = machine.attach_up_to(count)?;
        per_pasid = private_bytes()?.saturating_sub(bytes) / u64::from(count - before).max(1);
        println!("| {name} | {before} | {count} | {what} | {each:.0?} | {per_pasid} |");
    }
    println!("| {name} | {last} | 0 | reset | {:.0?} | |", reset(&mut machine));
    Ok(per_pasid)
}

/// One flavour, in a process of its own: what another one has freed would be used again, and not show.
const FLAVOUR: &str = "--flavour=";

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if let Some(name) = arguments.iter().find_map(|argument| argument.strip_prefix(FLAVOUR)) {
        let arch = if name == "vtd" { Arch::Vtd } else { Arch::SmmuV3 };
        let quick = !has("--bench") || has("--quick");
        let last = if quick { DOMAINS + DOMAINS / 16 } else { (1 << PASID_BITS) - 1 };
        let bytes = measure(name, arch, last)?;
        let holds = !has("--bench") || bytes < LIMIT_BYTES;
        let broken = || format!("{name}: {bytes} bytes for each PASID, not below {LIMIT_BYTES}");
        return if holds { Ok(()) } else { Err(broken().into()) };
    }
    println!("| tables | from | to PASIDs | each to a | time each | private bytes each |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for name in ["vtd", "smmuv3"] {
        let mut command = Command::new(std::env::current_exe()?);
        let done = command.args(&arguments).arg(format!("{FLAVOUR}{name}")).status()?;
        if !done.success() {
            return Err(format!("{name}: {done}").into());
        }
    }
    Ok(())
}
