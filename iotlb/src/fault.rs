//! Refused accesses: what a reader sees, and how the daemon hears of it.
//!
//! A connection has a ring of [`FAULT_RECORDS`] records in its slot memory. The device puts, the
//! daemon takes; a full ring drops and counts. The endpoint of a fault is the connection's: a
//! record has none.

use std::fmt;

use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Fault, Iova};

use crate::abi::{FAULT_RECORDS, FaultWords, SlotMemory};
use crate::sync::Ordering;

/// [`FAULT_RECORDS`] as the ring's counters see it.
const RECORDS: u64 = FAULT_RECORDS as u64;

/// Why an access was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultReason {
    /// Nothing is attached for this endpoint and PASID.
    NotAttached,
    /// The tables that lead to the page table hold what this reader cannot interpret.
    Malformed,
    /// A mapping is missing, or forbids the access; or an entry of a bound table does.
    Mapping(Fault),
    /// The second level below a bound table refused an address that the table holds, or its output.
    SecondLevel(Fault),
    /// The IOVA runs past the last address or, passed through, reaches where tables live.
    OutOfRange,
}

/// An access that was not allowed. Nothing of it is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessFault {
    /// The PASID that the access carried.
    pub pasid: Option<Pasid>,
    /// The first address that was refused; what lies before it in the same access was allowed.
    pub iova: Iova,
    /// What the access does.
    pub access: Access,
    /// Why it was refused.
    pub reason: FaultReason,
}

impl fmt::Display for AccessFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pasid, iova, access, reason } = self;
        write!(f, "{access:?} at {iova}")?;
        if let Some(pasid) = pasid {
            write!(f, " with PASID {pasid}")?;
        }
        match reason {
            FaultReason::NotAttached => write!(f, ": nothing is attached"),
            FaultReason::Malformed => write!(f, ": malformed tables"),
            FaultReason::Mapping(fault) | FaultReason::SecondLevel(fault) => {
                write!(f, ": {fault}")
            }
            FaultReason::OutOfRange => write!(f, ": address out of range"),
        }
    }
}

impl std::error::Error for AccessFault {}

/// What a [`FaultReason`] comes down to for the guest (virtio 1.4, 5.13.6.9: the fault's reason).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultClass {
    /// Neither of the others.
    Unknown,
    /// The endpoint is not attached to a domain.
    NotAttached,
    /// The domain has no mapping that allows the access.
    Mapping,
}

/// A fault as it comes out of a connection's ring.
///
/// Its content is a device process's claim; only the endpoint, which the connection gives, is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultRecord {
    /// The PASID that the access carried.
    pub pasid: Option<Pasid>,
    /// The refused address.
    pub iova: Iova,
    /// What the access does: `READ`, `WRITE`, or both.
    pub access: Access,
    /// Why it was refused.
    pub class: FaultClass,
    /// The table that the guest has bound allowed the access; what lies below it refused.
    pub second_level: bool,
}

impl From<&AccessFault> for FaultRecord {
    fn from(fault: &AccessFault) -> Self {
        let class = match fault.reason {
            FaultReason::NotAttached => FaultClass::NotAttached,
            FaultReason::Mapping(_) | FaultReason::SecondLevel(_) => FaultClass::Mapping,
            FaultReason::Malformed | FaultReason::OutOfRange => FaultClass::Unknown,
        };
        let second_level = matches!(fault.reason, FaultReason::SecondLevel(_));
        let AccessFault { pasid, iova, access, .. } = *fault;
        Self { pasid, iova, access, class, second_level }
    }
}

impl FaultRecord {
    /// Words: IOVA; PASID or 0; access in bits 7:0, class in bits 15:8, second level in bit 16; 0.
    fn encode(&self) -> [u64; 4] {
        let class: u64 = match self.class {
            FaultClass::Unknown => 0,
            FaultClass::NotAttached => 1,
            FaultClass::Mapping => 2,
        };
        let pasid = self.pasid.map_or(0, |pasid| u64::from(pasid.raw()));
        let what = u64::from(self.access.bits()) | class << 8 | u64::from(self.second_level) << 16;
        [self.iova.raw(), pasid, what, 0]
    }

    /// The record in `words`; `None` for a number that is no PASID. Unknown access bits are
    /// dropped, an unknown class is [`FaultClass::Unknown`].
    fn decode([iova, pasid, what, _]: [u64; 4]) -> Option<Self> {
        let pasid = match pasid {
            0 => None,
            raw => Some(Pasid::new(u32::try_from(raw).ok()?)?),
        };
        let [access, class, more, ..] = what.to_le_bytes();
        let class = match class {
            1 => FaultClass::NotAttached,
            2 => FaultClass::Mapping,
            _ => FaultClass::Unknown,
        };
        let access = Access::from_bits_truncate(access);
        let (iova, second_level) = (Iova::new(iova), more & 1 != 0);
        Some(Self { pasid, iova, access, class, second_level })
    }
}

/// Record `number` of the ring.
fn words(slot: &SlotMemory, number: u64) -> Option<&FaultWords> {
    slot.faults.get(usize::try_from(number % RECORDS).ok()?)
}

/// Puts a record into the ring; false if it is full. One thread at a time.
pub(crate) fn put(slot: &SlotMemory, record: &FaultRecord) -> bool {
    // Relaxed: only this side stores it, one thread at a time
    let put = slot.device.put.load(Ordering::Relaxed);
    // Acquire: pairs with the store in `Taker::take`, which has read the words that are overwritten
    let taken = slot.fault_head.taken.load(Ordering::Acquire);
    let Some(place) = words(slot, put).filter(|_| put.wrapping_sub(taken) < RECORDS) else {
        slot.device.dropped.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    for (word, value) in place.iter().zip(record.encode()) {
        word.store(value, Ordering::Relaxed);
    }
    // Release: pairs with the load in `Taker::take`
    slot.device.put.store(put.wrapping_add(1), Ordering::Release);
    true
}

/// The daemon's end of a ring. Its position is kept here: what the shared memory says is not
/// believed.
#[derive(Debug, Default)]
pub(crate) struct Taker {
    taken: u64,
}

/// What one visit to a ring came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Taken {
    /// Records handed on.
    pub(crate) good: u64,
    /// Records that were no records, or ring positions that cannot be.
    pub(crate) bad: u64,
}

impl Taker {
    /// Hands what is in the ring to `on`: at most [`FAULT_RECORDS`] records, whatever the device
    /// does.
    pub(crate) fn take(&mut self, slot: &SlotMemory, on: &mut dyn FnMut(FaultRecord)) -> Taken {
        // Acquire: pairs with the store in `put`
        let put = slot.device.put.load(Ordering::Acquire);
        let mut taken = Taken::default();
        if put.wrapping_sub(self.taken) > RECORDS {
            // no honest device gets here; go on from where it says it is
            self.taken = put;
            taken.bad = 1;
        }
        while self.taken != put {
            let record = words(slot, self.taken)
                .and_then(|words| FaultRecord::decode(words.each_ref().map(load_once)));
            self.taken = self.taken.wrapping_add(1);
            match record {
                Some(record) => {
                    taken.good += 1;
                    on(record);
                }
                None => taken.bad += 1,
            }
        }
        // Release: pairs with the load in `put`
        slot.fault_head.taken.store(self.taken, Ordering::Release);
        taken
    }
}

/// Relaxed: an honest device released the words with `put`; another may change them at any time.
fn load_once(word: &crate::sync::AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_words() {
        for class in [FaultClass::Unknown, FaultClass::NotAttached, FaultClass::Mapping] {
            for pasid in [None, Some(Pasid::MAX)] {
                let (iova, access) = (Iova::new(u64::MAX), Access::WRITE);
                for second_level in [false, true] {
                    let record = FaultRecord { pasid, iova, access, class, second_level };
                    assert_eq!(FaultRecord::decode(record.encode()), Some(record));
                }
            }
        }
    }

    #[test]
    fn words_that_are_no_record_are_told_apart() {
        assert_eq!(FaultRecord::decode([0, 1 << 20, 1, 0]), None, "wider than a PASID");
        assert_eq!(FaultRecord::decode([0, 1 << 32, 1, 0]), None);
        let odd = FaultRecord::decode([8, 0, u64::MAX, u64::MAX]).unwrap();
        let (iova, access) = (Iova::new(8), Access::all());
        let class = FaultClass::Unknown;
        let expected = FaultRecord { pasid: None, iova, access, class, second_level: true };
        assert_eq!(odd, expected);
    }
}
