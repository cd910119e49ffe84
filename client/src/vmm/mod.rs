//! Played by a VMM: the guest's memory is a memfd of ours, the IOMMU's daemon is reached by vhost-user,
//! and a device process by vfio-user. No guest and no QEMU are needed.

mod front_end;
mod function;
mod memory;

pub use front_end::FrontEnd;
pub use function::VfioUserFunction;
pub use memory::Memfd;
