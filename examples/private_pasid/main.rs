//! A private PASID, from request to DMA: an ordinary driver gives a queue of its device an address
//! space of its own, uses it, and takes it away.
//!
//! ```text
//! cargo run --release --example private_pasid
//! ```
//!
//! No guest and no QEMU are needed. What runs is real: the daemon's binary in a process of its own, the
//! DMA engine of `examples/dma-engine` as a vfio-user server, and a driver (`viommu-client`) that speaks
//! virtio-iommu over a virtqueue. Only the VMM between them is played.
//!
//! Each step is printed as it is seen; anything else than what is expected ends the program with
//! status 1.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt::Debug;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use clap::{Parser, ValueEnum};
use vfio_user::Server;
use viommu_client::engine::{Engine, Outcome, Work};
use viommu_client::vmm::{FrontEnd, Memfd, VfioUserFunction};
use viommu_client::{
    Attribute, AuxFlags, Fault, Iommu, Memory, PasidChoice, Property, Rights, features,
};

use self::daemon::Daemon;
use self::support::DmaPort;

mod daemon;
#[path = "../dma-engine/device/mod.rs"]
mod device;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "what is for programs and for other devices")]
mod support;

/// Shows a private PASID, from request to DMA
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The structures that the daemon keeps
    #[arg(long, value_enum, default_value_t = Arch::Vtd)]
    arch: Arch,
}

/// What the daemon's `--arch` takes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Arch {
    /// VT-d's, in scalable mode
    Vtd,
    /// The Arm SMMUv3's
    #[value(name = "smmuv3")]
    SmmuV3,
}

/// The function that the engine is: 0000:00:04.0.
const ENDPOINT: u32 = 0x20;
const ADDRESS: &str = "00:04.0";

/// The driver's domains: one for the PASID, one for all other DMA of the function.
const PRIVATE: u32 = 7;
const UNTAGGED: u32 = 1;

/// Where the driver puts its buffers in the private address space.
const SOURCE: u64 = 0x1000;
const DESTINATION: u64 = 0x2000;
const PAGE: u64 = 4096;

const TEXT: &[u8; 32] = b"seen through a PASID of our own.";

/// Bytes of the played guest's memory.
const RAM_BYTES: u64 = 16 << 20;

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args.arch) {
        Ok(()) => {
            println!("all as expected");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("private_pasid: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arch: Arch) -> Result<(), Failure> {
    let arch = match arch {
        Arch::Vtd => "vtd",
        Arch::SmmuV3 => "smmuv3",
    };
    let daemon = Daemon::start(arch, ADDRESS)?;
    println!("the daemon serves {ADDRESS} with 20 bits of PASID, --arch {arch}");
    let memory = Memfd::new(RAM_BYTES)?;
    let engine_socket = daemon.folder().join("engine");
    let served = serve_engine(&daemon.iotlb(), &engine_socket)?;
    let engine = Engine::new(VfioUserFunction::connect(&engine_socket, memory.clone())?)?;
    println!("the DMA engine has {} queues behind it", engine.queues());
    let front_end = FrontEnd::connect(&daemon.front_end(), memory.clone())?;
    let iommu = Iommu::start(front_end, features::STANDARD | features::AUX)?;
    println!("the driver has negotiated bit 50, and not 51: nothing can be bound");

    let mut driver = Driver { iommu, engine, memory };
    driver.probe()?;
    driver.use_private_pasid()?;
    drop(driver);
    served.join().map_err(|_| "the engine's thread panicked")?;
    daemon.end()
}

/// The engine behind the IOMMU at `iotlb`, for one VMM at `socket`; its thread ends with the VMM.
fn serve_engine(iotlb: &Path, socket: &Path) -> Result<JoinHandle<()>, Failure> {
    let dma = Arc::new(DmaPort::connect(Some(iotlb))?);
    let mut function = device::function(dma)?;
    let server = Server::new(socket, true, function.irqs(), function.regions())?;
    Ok(thread::spawn(move || {
        if let Err(error) = server.run(&mut function) {
            log::debug!("the engine's connection ended: {error}");
        }
        function.disconnect();
    }))
}

/// Fails unless `seen` is `expected`.
fn expect<V: PartialEq + Debug>(what: &str, seen: &V, expected: &V) -> Result<(), Failure> {
    if seen == expected {
        return Ok(());
    }
    Err(format!("{what}: {seen:x?}, not {expected:x?}").into())
}

/// A driver with its device.
struct Driver {
    iommu: Iommu<FrontEnd>,
    engine: Engine<VfioUserFunction>,
    memory: Memfd,
}

impl Driver {
    /// Looks at what the endpoint can do.
    fn probe(&mut self) -> Result<(), Failure> {
        let properties = self.iommu.probe(ENDPOINT)?;
        let aux = properties.iter().find_map(|property| match property {
            Property::Aux { pasid_bits, flags } => Some((*pasid_bits, *flags)),
            _ => None,
        });
        let (bits, flags) = aux.ok_or("PROBE tells of no PASIDs")?;
        println!("PROBE: PASIDs of {bits} bits, flags {:#x}", flags.0);
        expect("the width of PASIDs", &bits, &20)?;
        expect("PASID_ANY", &flags.contains(AuxFlags::PASID_ANY), &true)
    }

    /// The whole life of a private PASID.
    fn use_private_pasid(&mut self) -> Result<(), Failure> {
        // the function's own traffic has a domain too, and nothing in it
        self.iommu.attach(UNTAGGED, ENDPOINT)?;
        self.iommu.aux_enable(ENDPOINT)?;
        let pasid = self.iommu.aux_attach(PRIVATE, ENDPOINT, PasidChoice::Any)?;
        println!("AUX_ATTACH: domain {PRIVATE} has PASID {pasid}");
        let told = self.iommu.attribute(Attribute::AuxId, PRIVATE, ENDPOINT)?;
        expect("AUX_ID", &told, &u64::from(pasid))?;

        let (source, destination) = (self.memory.page()?, self.memory.page()?);
        self.memory.write(source, TEXT)?;
        let page = |at: u64| at..=at + PAGE - 1;
        self.iommu.map(PRIVATE, page(SOURCE), source, Rights::Read)?;
        self.iommu.map(PRIVATE, page(DESTINATION), destination, Rights::ReadWrite)?;
        println!("MAP: {SOURCE:#x} to {source:#x}, {DESTINATION:#x} to {destination:#x}");

        let (tagged, untagged) = (0, 1);
        self.engine.enable(tagged, Some(pasid))?;
        self.engine.enable(untagged, None)?;
        expect("the DMA", &self.copy(tagged)?, &Outcome::Done)?;
        let mut text = [0; TEXT.len()];
        self.memory.read(destination, &mut text)?;
        expect("what it copied", &text, TEXT)?;
        println!("DMA with PASID {pasid}: {:?}", String::from_utf8_lossy(&text));
        self.blocked("untagged DMA to the same address", untagged, None)?;

        self.iommu.unmap(PRIVATE, page(SOURCE))?;
        println!("UNMAP: {SOURCE:#x}");
        self.blocked("DMA with the PASID", tagged, Some(pasid))?;

        self.engine.disable(tagged)?;
        self.engine.disable(untagged)?;
        self.iommu.aux_detach(PRIVATE, ENDPOINT, pasid)?;
        self.iommu.aux_disable(ENDPOINT)?;
        Ok(self.iommu.detach(UNTAGGED, ENDPOINT)?)
    }

    /// Copies the text.
    fn copy(&mut self, queue: u32) -> Result<Outcome, Failure> {
        let bytes = u32::try_from(TEXT.len())?;
        let work = Work::Copy { source: SOURCE, destination: DESTINATION, bytes };
        Ok(self.engine.run(queue, work)?)
    }

    /// The copy is refused where it reads, and the driver is told.
    fn blocked(&mut self, what: &str, queue: u32, pasid: Option<u32>) -> Result<(), Failure> {
        let refused = Outcome::Fault { address: SOURCE, write: false };
        expect(what, &self.copy(queue)?, &refused)?;
        let fault = Fault {
            reason: 2,
            endpoint: ENDPOINT,
            pasid,
            address: Some(SOURCE),
            read: true,
            write: false,
            second_level: false,
        };
        expect("the event", &self.iommu.wait_fault()?, &fault)?;
        println!("{what}: blocked at {SOURCE:#x}, and the driver is told");
        Ok(())
    }
}
