//! Feature bits (virtio 1.4, 5.13.3; those of the extension: `docs/aux-domains.md`).

/// The range of IOVAs that can be mapped is in the configuration space.
pub const INPUT_RANGE: u64 = 1 << 0;
/// The range of domain numbers is in the configuration space.
pub const DOMAIN_RANGE: u64 = 1 << 1;
/// ATTACH, MAP, UNMAP.
pub const MAP_UNMAP: u64 = 1 << 2;
/// PROBE.
pub const PROBE: u64 = 1 << 4;
/// The MMIO flag of MAP.
pub const MMIO: u64 = 1 << 5;
/// `bypass` in the configuration space.
pub const BYPASS_CONFIG: u64 = 1 << 6;
/// The device conforms to virtio 1.0 or later.
pub const VERSION_1: u64 = 1 << 32;
/// Auxiliary domains: several for one endpoint, each behind a PASID.
pub const AUX: u64 = 1 << 50;
/// Tables of the guest's own, bound to a domain.
pub const BIND_TABLE: u64 = 1 << 51;

/// What every driver of this crate needs.
pub const STANDARD: u64 =
    INPUT_RANGE | DOMAIN_RANGE | MAP_UNMAP | PROBE | BYPASS_CONFIG | VERSION_1;
