//! A PCI function as vfio-user sees it: nine regions, five interrupt indexes, DMA maps, reset.

use std::fs::File;
use std::io;
use std::sync::Arc;

use log::debug;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR1_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};

use super::bytes::{read_register, write_le};
use super::config_space::{CONFIG_BYTES, ConfigSpace, Identity, LayoutError};
use super::dma::DmaPort;
use super::express::{self, PasidControl};
use super::interrupts::{Interrupts, SetIrqs};
use super::ram::Piece;

/// Regions of a PCI device in vfio: six BARs, ROM, configuration space, VGA.
const REGIONS: u32 = 9;
/// `argsz` of a region without capabilities.
const REGION_INFO_BYTES: u32 = 32;
const _: () = assert!(size_of::<vfio_region_info>() == REGION_INFO_BYTES as usize);
/// Each region's place in vfio's one address space, by convention.
const REGION_SHIFT: u32 = 40;

/// The BAR with the MSI-X table in its first half and the pending bits after it.
const MSIX_BAR: u8 = 1;
const MSIX_BAR_BYTES: u32 = 4096;
const PENDING_OFFSET: u32 = MSIX_BAR_BYTES / 2;
const TABLE_ENTRY_BYTES: usize = 16;
/// As many vectors as [`Interrupts::pending_bits`] shows; the table has room for 128.
const MAX_VECTORS: u16 = 64;

const MSIX_CAPABILITY: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;
const STATUS_BYTE: u64 = 0x06;
const STATUS_INTERRUPT: u8 = 1 << 3;

/// What a device puts behind BAR 0.
///
/// All calls come from one thread. Offsets and lengths are the guest's: any value may come, none may
/// panic, and what is not a register reads as zero and ignores writes.
pub(crate) trait Device {
    /// Fills `data` from the registers at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes `data` to the registers at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);

    /// Back to power-on. Returns when no DMA is under way; none begins until registers are written.
    fn reset(&mut self);

    /// Software lets the function tag its DMA with PASIDs, or no longer: then this returns when no
    /// tagged DMA is under way. Comes after each write to configuration space, changed or not; a reset
    /// forbids it without a call. For functions with [`Function::add_pasids`].
    fn allow_pasids(&mut self, _allowed: bool) {}
}

/// What a function is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    /// Who it is.
    pub(crate) identity: Identity,
    /// Bytes of BAR 0.
    pub(crate) register_bytes: u32,
    /// MSI-X vectors, 1 to 64.
    pub(crate) vectors: u16,
    /// True if it can raise INTA# too.
    pub(crate) intx: bool,
}

/// A PCI function: registers of `D` in BAR 0, MSI-X in BAR 1.
#[derive(Debug)]
pub(crate) struct Function<D> {
    spec: Spec,
    config: ConfigSpace,
    msix_capability: usize,
    pasids: Option<PasidControl>,
    table: Vec<u8>,
    interrupts: Arc<Interrupts>,
    dma: Arc<DmaPort>,
    device: D,
}

impl<D: Device> Function<D> {
    /// Puts a function together; `device` makes what is behind BAR 0.
    ///
    /// # Errors
    /// [`LayoutError`] if `spec` is impossible.
    pub(crate) fn new(
        spec: &Spec,
        dma: Arc<DmaPort>,
        device: impl FnOnce(Arc<Interrupts>) -> D,
    ) -> Result<Self, LayoutError> {
        if spec.vectors == 0 || spec.vectors > MAX_VECTORS {
            return Err(LayoutError::Vectors { vectors: spec.vectors, most: MAX_VECTORS });
        }
        let mut config = ConfigSpace::new(&spec.identity);
        config.add_bar(0, spec.register_bytes)?;
        config.add_bar(MSIX_BAR, MSIX_BAR_BYTES)?;
        if spec.intx {
            config.add_interrupt_pin();
        }
        let msix_capability = add_msix(&mut config, spec.vectors)?;
        let interrupts = Arc::new(Interrupts::new(spec.vectors, spec.intx));
        let device = device(Arc::clone(&interrupts));
        let table = power_on_table(spec.vectors);
        let (spec, pasids) = (*spec, None);
        Ok(Self { spec, config, msix_capability, pasids, table, interrupts, dma, device })
    }

    /// Adds a capability: see [`ConfigSpace::add_capability`].
    ///
    /// # Errors
    /// [`LayoutError::CapabilitiesFull`].
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8]) -> Result<usize, LayoutError> {
        self.config.add_capability(id, body, &[])
    }

    /// Makes the function one of PCI Express that tags its DMA with PASIDs of `bits` bits.
    ///
    /// # Errors
    /// [`LayoutError`] if the width cannot be or there is no room.
    pub(crate) fn add_pasids(&mut self, bits: u8) -> Result<(), LayoutError> {
        self.pasids = Some(express::add_pasids(&mut self.config, bits)?);
        Ok(())
    }

    /// The regions, as the VMM is told.
    pub(crate) fn regions(&self) -> Vec<ServerRegion> {
        (0..REGIONS).map(|index| self.region(index)).collect()
    }

    /// The interrupts, as the VMM is told.
    pub(crate) fn irqs(&self) -> Vec<IrqInfo> {
        self.interrupts.info()
    }

    /// The VMM has gone: everything that was its own goes too, and the function is as after a reset.
    pub(crate) fn disconnect(&mut self) {
        self.reset_function();
        self.interrupts.disconnect();
        self.dma.ram().clear();
    }

    fn region(&self, index: u32) -> ServerRegion {
        let size = match index {
            VFIO_PCI_BAR0_REGION_INDEX => u64::from(self.spec.register_bytes),
            VFIO_PCI_BAR1_REGION_INDEX => u64::from(MSIX_BAR_BYTES),
            VFIO_PCI_CONFIG_REGION_INDEX => u64::from(CONFIG_BYTES),
            _ => 0,
        };
        let flags =
            if size == 0 { 0 } else { VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE };
        let region_info = vfio_region_info {
            argsz: REGION_INFO_BYTES,
            flags,
            index,
            size,
            offset: u64::from(index) << REGION_SHIFT,
            ..Default::default()
        };
        ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
        let status = STATUS_BYTE.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = status.and_then(|at| data.get_mut(at))
            && self.interrupts.intx_asserted()
        {
            *byte |= STATUS_INTERRUPT;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.config.write(offset, data);
        let control = self.config.register(self.msix_capability + 2);
        self.interrupts.configure(control & MSIX_ENABLE != 0, self.config.intx_disabled());
        if let Some(pasids) = self.pasids {
            self.device.allow_pasids(pasids.enabled(&self.config));
        }
    }

    fn read_msix(&self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(u64::from(PENDING_OFFSET)) {
            Some(pending) => read_register(self.interrupts.pending_bits(), pending, data),
            None => {
                data.fill(0);
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                data.iter_mut().zip(self.table.iter().skip(start)).for_each(|(to, from)| {
                    *to = *from;
                });
            }
        }
    }

    fn reset_function(&mut self) {
        self.device.reset();
        self.config.reset();
        self.interrupts.reset();
        self.table = power_on_table(self.spec.vectors);
        self.dma.function_reset();
    }
}

/// The MSI-X capability (PCI 3.0, 6.8.2).
fn add_msix(config: &mut ConfigSpace, vectors: u16) -> Result<usize, LayoutError> {
    let mut body = [0; 10];
    write_le(&mut body, 0, &(vectors - 1).to_le_bytes());
    write_le(&mut body, 2, &(u32::from(MSIX_BAR)).to_le_bytes());
    write_le(&mut body, 6, &(PENDING_OFFSET | u32::from(MSIX_BAR)).to_le_bytes());
    config.add_capability(MSIX_CAPABILITY, &body, &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes())
}

/// The table at power-on: each vector masked.
fn power_on_table(vectors: u16) -> Vec<u8> {
    let mut entry = [0; TABLE_ENTRY_BYTES];
    write_le(&mut entry, 12, &[1]);
    entry.repeat(usize::from(vectors))
}

impl<D: Device> ServerBackend for Function<D> {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => self.device.read(offset, data),
            VFIO_PCI_BAR1_REGION_INDEX => self.read_msix(offset, data),
            VFIO_PCI_CONFIG_REGION_INDEX => self.read_config(offset, data),
            _ => data.fill(0),
        }
        Ok(())
    }

    /// Never fails: a guest's write to nowhere is no error of the VMM's, and the answer to an error
    /// would meet a VMM that posted the write and waits for none.
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => self.device.write(offset, data),
            VFIO_PCI_BAR1_REGION_INDEX if offset < u64::from(PENDING_OFFSET) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                write_le(&mut self.table, start, data);
            }
            VFIO_PCI_CONFIG_REGION_INDEX => self.write_config(offset, data),
            _ => {}
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        file_offset: u64,
        address: u64,
        bytes: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        debug!("map {bytes:#x} bytes at {address:#x}, {flags:?}, file: {}", file.is_some());
        let piece = Piece { address, bytes, file_offset, flags };
        self.dma.ram().map(&piece, file).map_err(io::Error::other)
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, bytes: u64) -> io::Result<()> {
        debug!("unmap {bytes:#x} bytes at {address:#x}, {flags:?}");
        self.dma.ram().unmap(flags, address, bytes).map_err(io::Error::other)
    }

    fn reset(&mut self) -> io::Result<()> {
        debug!("function reset");
        self.reset_function();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        let request = SetIrqs { index, flags, start, count };
        debug!("{request:x?}, {} eventfds", fds.len());
        self.interrupts.set_irqs(&request, fds)
    }
}

#[cfg(test)]
mod tests;
