//! Pins: accesses in flight that outlive their guard.

use std::sync::Arc;

use viommu_pasid::Pasid;
use viommu_pgtable::IovaRange;

use crate::abi::{PIN_SLOTS, SlotMemory};
use crate::link::{Link, give_bit, take_bit};
use crate::sync::{AtomicU64, Ordering};

/// All pins of the connection are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {PIN_SLOTS} pins of the connection are in use")]
pub struct PinsFull;

/// Holds off the withdrawal of a range until it is dropped.
///
/// The daemon's time for stuck processes runs for pins as for guards.
#[derive(Debug)]
pub struct Pin {
    link: Arc<Link>,
    index: usize,
}

impl Pin {
    pub(crate) fn new(
        link: Arc<Link>,
        pasid: Option<Pasid>,
        range: IovaRange,
        epoch: u64,
    ) -> Result<Self, PinsFull> {
        let index = take(&link.slot).ok_or(PinsFull)?;
        if let Some(line) = link.slot.pins.get(index) {
            // Relaxed: the end of the section (Release) publishes them, and the daemon reads pins
            // after it has seen that. Until then it may read the last owner's: it waits a little
            // for nothing.
            let put = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
            put(&line.epoch, epoch);
            put(&line.pasid, pasid.map_or(0, |pasid| u64::from(pasid.raw())));
            put(&line.first, range.start().raw());
            put(&line.last, range.last().raw());
        }
        Ok(Self { link, index })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(word) = self.link.slot.device.pins_used.get(self.index / 64) {
            give_bit(word, self.index);
        }
    }
}

/// A free place, now taken.
fn take(slot: &SlotMemory) -> Option<usize> {
    let words = slot.device.pins_used.iter().enumerate();
    words.filter_map(|(n, word)| Some(n * 64 + take_bit(word)?)).next()
}
