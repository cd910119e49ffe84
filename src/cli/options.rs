//! What the daemon is told whoever starts it: by itself or through `launch`.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, ValueEnum};
use viommu_pgtable::IovaRange;

use crate::config::{
    self, Arch, Config, ConfigError, EndpointOption, HostInterface, MAX_STUCK_MS, NumberError,
    OnStart, Pin, Sandbox, Socket, StuckDevice, VfioOptions,
};
use crate::device::Polling;
use crate::iommu::Settings;

/// The options.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// An endpoint, or a range of them:
    /// [SSSS:]BB:DD.F[-[SSSS:]BB:DD.F][,socket=PATH][,pasid-bits=N][,vfio=DEVICE].
    ///
    /// socket=PATH is where its device process connects; for a range, PATH is a folder with one
    /// socket for each, named SSSS:BB:DD.F. pasid-bits=N, 1 to 20, lets the guest attach domains to
    /// PASIDs of N bits; 0, the default, does not. vfio=SSSS:BB:DD.F is a device of the host that is
    /// bound to vfio-pci; vfio=fd:N,iommufd=fd:M is one that the VMM binds, by inherited descriptors.
    /// BB, DD and F are hexadecimal, N and descriptors decimal. Again for more endpoints.
    #[arg(long = "endpoint", value_name = "SPEC", value_parser = EndpointOption::parse)]
    pub(super) endpoints: Vec<EndpointOption>,
    /// Structures that the software IOMMU keeps.
    #[arg(long, value_enum, value_name = "ARCH", default_value_t = Arch::Vtd)]
    arch: Arch,
    /// Width of the guest's IOVAs, bits: 39, 48 or, for vtd, 57.
    #[arg(long, value_name = "N", default_value_t = Settings::DEFAULT_INPUT_BITS)]
    input_bits: u8,
    /// Page sizes for the guest's mappings: sizes with + between them, or a mask in hex.
    #[arg(long, value_name = "MASK", default_value = "4K+2M+1G", value_parser = page_sizes)]
    page_sizes: PageSizes,
    /// Keep the guest's IOVAs in this window, both ends inclusive; for instance in plain RAM, so
    /// that stock vhost-user-*-pci devices work behind us.
    #[arg(long, value_name = "START-END", value_parser = config::window)]
    iova_window: Option<IovaRange>,
    /// Where the guest's interrupt controller takes messages, both ends inclusive: no IOVAs. The
    /// default is x86's; with a GICv3 it is the ITS, on QEMU's virt machine 0x8080000-0x809ffff.
    #[arg(
        long,
        value_name = "START-END",
        default_value = "0xfee00000-0xfeefffff",
        value_parser = config::window
    )]
    msi_window: IovaRange,
    /// Whether DMA of an endpoint that is attached to nothing passes when a front-end comes.
    /// Firmware needs it on to read a disk.
    #[arg(long, value_name = "on|off", default_value = "on")]
    boot_bypass: Switch,
    /// Domains that the guest can have at once.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1 << 16,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_domains: u32,
    /// Mappings that each domain can hold.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1 << 20,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_mappings: u32,
    /// Memory for translation tables, bytes (K, M, G); only what is used is taken.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = bytes)]
    table_memory: Bytes,
    /// Look at the request queue for so long after work before sleeping, microseconds. auto: for 100 where
    /// requests follow each other that closely, and not at all elsewhere.
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = config::polling)]
    poll_us: Polling,
    /// Wait for a device process that does not let go of a translation, milliseconds.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..=MAX_STUCK_MS)
    )]
    stuck_ms: u64,
    /// What becomes of it then.
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = StuckDevice::Kill)]
    stuck_device: StuckDevice,
    /// Which guest memory is pinned for VFIO devices, and when.
    #[arg(long, value_enum, value_name = "static|dynamic", default_value_t = Pin::Static)]
    pin: Pin,
    /// What becomes of a device, given with vfio=fd:N, that is attached already.
    #[arg(long, value_enum, value_name = "boot|keep|block", default_value_t = OnStart::Boot)]
    pub(super) on_start: OnStart,
    /// Whether the daemon locks itself in once everything is open: no capabilities, landlock,
    /// seccomp.
    #[arg(long, value_enum, value_name = "auto|none", default_value_t = Sandbox::Auto)]
    sandbox: Sandbox,
    /// What is logged: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    log_level: log::LevelFilter,
}

impl Options {
    /// Those that were written, each as one word, for a daemon that is to be told the same.
    pub(super) fn as_told(matches: &ArgMatches) -> Vec<OsString> {
        let mut words = Vec::new();
        for option in Self::augment_args(Command::new("")).get_arguments() {
            let (id, name) = (option.get_id().as_str(), option.get_long().unwrap_or_default());
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            for value in matches.get_raw(id).into_iter().flatten() {
                let mut word = OsString::from(format!("--{name}="));
                word.push(value);
                words.push(word);
            }
        }
        words
    }

    /// The daemon that they describe, at `socket`, without windows over registers; `control` is the
    /// launcher's descriptor.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(super) fn config(
        self,
        socket: Socket,
        interface: HostInterface,
        control: Option<RawFd>,
    ) -> Result<Config, ConfigError> {
        let endpoints = config::endpoints(&self.endpoints, self.msi_window)?;
        let vfio = VfioOptions { interface, pin: self.pin, on_start: self.on_start, control };
        Ok(Config {
            socket,
            vfio: config::vfio(&endpoints, vfio)?,
            mmio: Vec::new(),
            endpoints,
            arch: self.arch,
            settings: self.settings()?,
            table_bytes: config::table_bytes(self.table_memory.0)?,
            polling: self.poll_us,
            stuck_after: Duration::from_millis(self.stuck_ms),
            stuck_device: self.stuck_device,
            sandbox: self.sandbox,
            log_level: self.log_level,
        })
    }

    /// The device's properties and limits.
    fn settings(&self) -> Result<Settings, ConfigError> {
        let page_size_mask = self.page_sizes.0;
        config::width(self.arch, self.input_bits)?;
        let count = |count| usize::try_from(count).unwrap_or(usize::MAX);
        Ok(Settings {
            page_size_mask,
            input: config::input(self.input_bits, self.iova_window, page_size_mask)?,
            domains: config::DOMAINS,
            probe_size: Settings::DEFAULT_PROBE_SIZE,
            max_domains: count(self.max_domains),
            max_mappings: count(self.max_mappings),
            boot_bypass: self.boot_bypass == Switch::On,
        })
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    On,
    Off,
}

/// Bytes, so that clap does not read them by itself.
#[derive(Debug, Clone, Copy)]
struct Bytes(u64);

/// A mask of page sizes, likewise.
#[derive(Debug, Clone, Copy)]
struct PageSizes(u64);

fn bytes(text: &str) -> Result<Bytes, NumberError> {
    config::bytes(text).map(Bytes)
}

fn page_sizes(text: &str) -> Result<PageSizes, NumberError> {
    config::page_sizes(text).map(PageSizes)
}

fn log_level(text: &str) -> Result<log::LevelFilter, String> {
    text.parse().map_err(|_| "write off, error, warn, info, debug or trace".to_owned())
}
