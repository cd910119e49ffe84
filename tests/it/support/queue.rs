//! A driver's side of a split virtqueue (virtio 1.4, 2.7), honest or not.
//!
//! Descriptors, rings and indices can be written as they are, so that a test can break any rule.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::wait_until;

/// Flags of a descriptor.
pub(crate) const NEXT: u16 = 1;
/// Written by the device.
pub(crate) const WRITE: u16 = 2;
/// Leads to a table of descriptors.
pub(crate) const INDIRECT: u16 = 4;

/// One descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A used entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) head: u32,
    pub(crate) bytes: u32,
}

/// The driver's side of a queue.
pub(crate) struct Queue {
    ram: GuestMemoryMmap,
    /// Where the descriptor table, the available and the used ring lie.
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    pub(crate) size: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    next_available: u16,
    next_used: u16,
}

impl Queue {
    /// A queue of `size` entries whose parts lie from `at` on, all zero.
    pub(crate) fn new(ram: &GuestMemoryMmap, at: u64, size: u16) -> Self {
        let (table, available) = (at, at + 16 * u64::from(size));
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let end = used + 6 + 8 * u64::from(size);
        ram.write_slice(&vec![0; (end - at) as usize], GuestAddress(at)).unwrap();
        Self {
            ram: ram.clone(),
            table,
            available,
            used,
            size,
            kick: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            next_available: 0,
            next_used: 0,
        }
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn write_descriptor(&self, table: u64, index: u16, descriptor: Descriptor) {
        let at = table + 16 * u64::from(index);
        self.write(at, &descriptor.address.to_le_bytes());
        self.write(at + 8, &descriptor.bytes.to_le_bytes());
        self.write(at + 12, &descriptor.flags.to_le_bytes());
        self.write(at + 14, &descriptor.next.to_le_bytes());
    }

    /// Writes a chain into the table, from `first` on; NEXT flags and links are added. Returns its head.
    pub(crate) fn write_chain(&self, first: u16, parts: &[Descriptor]) -> u16 {
        for (index, part) in (first..).zip(parts) {
            let last = usize::from(index - first) + 1 == parts.len();
            let (flags, next) = if last { (part.flags, 0) } else { (part.flags | NEXT, index + 1) };
            self.write_descriptor(self.table, index, Descriptor { flags, next, ..*part });
        }
        first
    }

    /// Puts a head into the available ring; [`publish`](Self::publish) shows it.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.write(self.available + 4 + 2 * slot, &head.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Shows the device what was made available.
    pub(crate) fn publish(&self) {
        self.store_available_index(self.next_available);
    }

    /// Stores any index.
    pub(crate) fn store_available_index(&self, index: u16) {
        // Release: the device's load of the index sees the entries written before.
        self.ram.store(index.to_le(), GuestAddress(self.available + 2), Ordering::Release).unwrap();
    }

    /// Publishes and kicks.
    pub(crate) fn notify(&self) {
        self.publish();
        self.kick.write(1).unwrap();
    }

    /// What the device asks for: the index at whose publication it wants a kick (EVENT_IDX).
    pub(crate) fn kick_wanted_at(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Asks for an interrupt when the used index passes `index` (EVENT_IDX).
    pub(crate) fn want_interrupt_at(&self, index: u16) {
        self.write(self.available + 4 + 2 * u64::from(self.size), &index.to_le_bytes());
    }

    /// Sets the available ring's flags: 1 wants no interrupt (without EVENT_IDX).
    pub(crate) fn set_flags(&self, flags: u16) {
        self.write(self.available, &flags.to_le_bytes());
    }

    /// The used ring's index.
    pub(crate) fn used_index(&self) -> u16 {
        self.load(self.used + 2)
    }

    /// The next used entry, waited for.
    pub(crate) fn wait_used(&mut self) -> Used {
        wait_until("a used entry", || self.used_index() != self.next_used);
        self.take_used().unwrap()
    }

    /// The next used entry, if there is one.
    pub(crate) fn take_used(&mut self) -> Option<Used> {
        if self.used_index() == self.next_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let (mut head, mut bytes) = ([0; 4], [0; 4]);
        self.ram.read_slice(&mut head, GuestAddress(at)).unwrap();
        self.ram.read_slice(&mut bytes, GuestAddress(at + 4)).unwrap();
        Some(Used { head: u32::from_le_bytes(head), bytes: u32::from_le_bytes(bytes) })
    }

    /// How many interrupts came since the last call.
    pub(crate) fn take_interrupts(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    /// Waits for an interrupt.
    pub(crate) fn wait_interrupt(&self) {
        wait_until("an interrupt", || self.take_interrupts() > 0);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn load(&self, at: u64) -> u16 {
        // Acquire: what the device wrote before it stored the index is seen.
        u16::from_le(self.ram.load(GuestAddress(at), Ordering::Acquire).unwrap())
    }
}
