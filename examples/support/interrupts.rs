//! Interrupts of a function: INTA# and MSI-X, as eventfds that the VMM hands over by SET_IRQS.
//!
//! What a VMM really does (QEMU), each found in traces:
//! - INTA# comes as an eventfd, is taken away and given again; each interrupt masks the line by
//!   itself, and the guest's acknowledge arrives as an unmask.
//! - MSI-X is first enabled with a count of one and **no** eventfd; the vectors follow one by one.
//!   An interrupt of a vector that is not wired yet is kept pending and sent when it is.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE,
    VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::IrqInfo;

/// Interrupt indexes of a PCI device in vfio: INTx, MSI, MSI-X, error, request.
const INDEXES: u32 = 5;

/// The interrupts of one function, shared by its threads.
#[derive(Debug)]
pub(crate) struct Interrupts {
    state: Mutex<State>,
    has_intx: bool,
    vectors: u16,
}

#[derive(Debug)]
struct State {
    intx: Intx,
    msix_enabled: bool,
    msix: Vec<Vector>,
}

/// INTA#: level-triggered, so it remembers that it is asserted while it cannot be sent.
#[derive(Debug, Default)]
struct Intx {
    eventfd: Option<File>,
    asserted: bool,
    masked: bool,
    disabled: bool,
}

/// One MSI-X vector.
#[derive(Debug, Default)]
struct Vector {
    eventfd: Option<File>,
    pending: bool,
}

impl Interrupts {
    /// `vectors` MSI-X vectors, and INTA# if `has_intx`.
    pub(crate) fn new(vectors: u16, has_intx: bool) -> Self {
        let msix = (0..vectors).map(|_| Vector::default()).collect();
        let state = State { intx: Intx::default(), msix_enabled: false, msix };
        Self { state: Mutex::new(state), has_intx, vectors }
    }

    /// What the VMM is told about each interrupt index.
    pub(crate) fn info(&self) -> Vec<IrqInfo> {
        let intx = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED;
        let one = |index| match index {
            VFIO_PCI_INTX_IRQ_INDEX => (intx, u32::from(self.has_intx)),
            VFIO_PCI_MSIX_IRQ_INDEX => {
                (VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE, u32::from(self.vectors))
            }
            _ => (VFIO_IRQ_INFO_EVENTFD, 0),
        };
        (0..INDEXES)
            .map(|index| {
                let (flags, count) = one(index);
                IrqInfo { index, flags, count }
            })
            .collect()
    }

    /// Does what a SET_IRQS message asks for.
    ///
    /// # Errors
    /// `InvalidInput` for vectors or combinations that do not exist; nothing changes then.
    pub(crate) fn set_irqs(&self, request: &SetIrqs, fds: Vec<File>) -> io::Result<()> {
        let mut state = self.lock();
        match request.index {
            VFIO_PCI_INTX_IRQ_INDEX if self.has_intx => state.intx.set(request, fds),
            VFIO_PCI_MSIX_IRQ_INDEX => state.set_msix(request, fds),
            _ => Err(request.refused()),
        }
    }

    /// True if software chose MSI-X.
    pub(crate) fn msix_enabled(&self) -> bool {
        self.lock().msix_enabled
    }

    /// Takes over what configuration space says about the two kinds of interrupt.
    pub(crate) fn configure(&self, msix_enabled: bool, intx_disabled: bool) {
        let mut state = self.lock();
        state.msix_enabled = msix_enabled;
        state.intx.disabled = intx_disabled || msix_enabled;
        state.intx.deliver();
    }

    /// Raises MSI-X vector `vector`; nothing happens if there is no such vector or MSI-X is off.
    pub(crate) fn raise_msix(&self, vector: u16) {
        let mut state = self.lock();
        if !state.msix_enabled {
            return;
        }
        if let Some(vector) = state.msix.get_mut(usize::from(vector)) {
            vector.pending = true;
            vector.deliver();
        }
    }

    /// Sets the level of INTA#.
    pub(crate) fn set_intx(&self, asserted: bool) {
        let mut state = self.lock();
        state.intx.asserted = asserted;
        state.intx.deliver();
    }

    /// True if INTA# is asserted, for the status register.
    pub(crate) fn intx_asserted(&self) -> bool {
        self.lock().intx.asserted
    }

    /// The pending bits of the first 64 vectors (PCI 3.0, 6.8.2.9).
    pub(crate) fn pending_bits(&self) -> u64 {
        let state = self.lock();
        let bits = state.msix.iter().zip(0u32..64);
        bits.fold(0, |bits, (vector, n)| bits | u64::from(vector.pending) << n)
    }

    /// The function was reset: nothing is asserted or pending. The eventfds stay, they are the VMM's.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.msix_enabled = false;
        state.msix.iter_mut().for_each(|vector| vector.pending = false);
        state.intx.asserted = false;
        state.intx.disabled = false;
        state.intx.masked = false;
    }

    /// The VMM has gone: forgets its eventfds too.
    pub(crate) fn disconnect(&self) {
        self.reset();
        let mut state = self.lock();
        state.intx.eventfd = None;
        state.msix.iter_mut().for_each(|vector| vector.eventfd = None);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The numbers of a SET_IRQS message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetIrqs {
    /// Interrupt index.
    pub(crate) index: u32,
    /// Kind of data and action.
    pub(crate) flags: u32,
    /// First vector.
    pub(crate) start: u32,
    /// Number of vectors; 0 with trigger means: take all away.
    pub(crate) count: u32,
}

impl SetIrqs {
    fn action(&self) -> u32 {
        self.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK
    }

    fn data(&self) -> u32 {
        self.flags & VFIO_IRQ_SET_DATA_TYPE_MASK
    }

    fn refused(&self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, format!("cannot do {self:x?}"))
    }
}

impl Intx {
    fn set(&mut self, request: &SetIrqs, mut fds: Vec<File>) -> io::Result<()> {
        match (request.action(), request.data(), request.count) {
            (VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_NONE, 0) => self.eventfd = None,
            (VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, 1) => {
                self.eventfd = fds.pop();
                self.masked = false;
            }
            (VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_DATA_NONE, 1) => self.masked = true,
            (VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_NONE, 1) => self.masked = false,
            _ => return Err(request.refused()),
        }
        self.deliver();
        Ok(())
    }

    /// Sends the interrupt if it is asserted and may be sent; a sent one masks the line.
    fn deliver(&mut self) {
        if self.asserted && !self.masked && !self.disabled {
            self.masked = signal(self.eventfd.as_ref());
        }
    }
}

impl State {
    fn set_msix(&mut self, request: &SetIrqs, fds: Vec<File>) -> io::Result<()> {
        if (request.action(), request.data(), request.count)
            == (VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_NONE, 0)
        {
            self.msix.iter_mut().for_each(|vector| vector.eventfd = None);
            return Ok(());
        }
        let eventfds = (VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD);
        let vectors = usize::try_from(request.start)
            .ok()
            .zip(usize::try_from(request.count).ok())
            .and_then(|(start, count)| self.msix.get_mut(start..start.checked_add(count)?));
        match vectors {
            Some(vectors) if (request.action(), request.data()) == eventfds => {
                let mut fds = fds.into_iter();
                for vector in vectors {
                    vector.eventfd = fds.next();
                    vector.deliver();
                }
                Ok(())
            }
            _ => Err(request.refused()),
        }
    }
}

impl Vector {
    fn deliver(&mut self) {
        if self.pending {
            self.pending = !signal(self.eventfd.as_ref());
        }
    }
}

/// Adds one to an eventfd; true if there was one and it took it.
fn signal(eventfd: Option<&File>) -> bool {
    eventfd.is_some_and(|mut eventfd| eventfd.write(&1u64.to_ne_bytes()).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const TRIGGER_FD: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
    const TRIGGER_NONE: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE;
    const UNMASK: u32 = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;

    fn request(index: u32, flags: u32, start: u32, count: u32) -> SetIrqs {
        SetIrqs { index, flags, start, count }
    }

    /// An eventfd and a second handle to see how often it was signalled.
    fn event() -> (File, OwnedFd) {
        let ours = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        (File::from(ours.try_clone().unwrap()), ours)
    }

    fn count(event: &OwnedFd) -> u64 {
        let mut value = [0; 8];
        rustix::io::read(event, &mut value).map_or(0, |_| u64::from_ne_bytes(value))
    }

    #[test]
    fn intx_is_sent_once_until_the_guest_acknowledges() {
        let interrupts = Interrupts::new(0, true);
        let (theirs, seen) = event();
        interrupts.set_irqs(&request(0, TRIGGER_FD, 0, 1), vec![theirs]).unwrap();
        interrupts.set_intx(true);
        interrupts.set_intx(true);
        assert_eq!(count(&seen), 1);
        interrupts.set_irqs(&request(0, UNMASK, 0, 1), vec![]).unwrap();
        assert_eq!(count(&seen), 1, "still asserted: sent again");
        interrupts.set_intx(false);
        interrupts.set_irqs(&request(0, UNMASK, 0, 1), vec![]).unwrap();
        assert_eq!(count(&seen), 0);
    }

    #[test]
    fn intx_asserted_without_an_eventfd_is_sent_when_one_comes() {
        let interrupts = Interrupts::new(0, true);
        let (theirs, seen) = event();
        interrupts.set_intx(true);
        interrupts.set_irqs(&request(0, TRIGGER_NONE, 0, 0), vec![]).unwrap();
        interrupts.set_irqs(&request(0, TRIGGER_FD, 0, 1), vec![theirs]).unwrap();
        assert_eq!(count(&seen), 1);
    }

    #[test]
    fn intx_stays_silent_while_disabled_or_replaced_by_msix() {
        let interrupts = Interrupts::new(1, true);
        let (theirs, seen) = event();
        interrupts.set_irqs(&request(0, TRIGGER_FD, 0, 1), vec![theirs]).unwrap();
        for (msix, disabled) in [(false, true), (true, false)] {
            interrupts.configure(msix, disabled);
            interrupts.set_intx(true);
            assert_eq!(count(&seen), 0);
        }
        interrupts.configure(false, false);
        assert_eq!(count(&seen), 1);
    }

    #[test]
    fn msix_enabled_without_eventfds_keeps_the_interrupt_pending() {
        let interrupts = Interrupts::new(3, false);
        let (theirs, seen) = event();
        interrupts.configure(true, false);
        interrupts.set_irqs(&request(2, TRIGGER_FD, 0, 1), vec![]).unwrap();
        interrupts.raise_msix(2);
        assert_eq!(interrupts.pending_bits(), 0b100);
        interrupts.set_irqs(&request(2, TRIGGER_FD, 2, 1), vec![theirs]).unwrap();
        assert_eq!((count(&seen), interrupts.pending_bits()), (1, 0));
        interrupts.raise_msix(2);
        interrupts.raise_msix(3);
        assert_eq!(count(&seen), 1);
    }

    #[test]
    fn msix_is_silent_while_off_and_after_its_eventfds_are_taken() {
        let interrupts = Interrupts::new(1, false);
        let (theirs, seen) = event();
        interrupts.set_irqs(&request(2, TRIGGER_FD, 0, 1), vec![theirs]).unwrap();
        interrupts.raise_msix(0);
        assert_eq!((count(&seen), interrupts.pending_bits()), (0, 0));
        interrupts.configure(true, false);
        interrupts.set_irqs(&request(2, TRIGGER_NONE, 0, 0), vec![]).unwrap();
        interrupts.raise_msix(0);
        assert_eq!((count(&seen), interrupts.pending_bits()), (0, 1));
        interrupts.reset();
        assert_eq!(interrupts.pending_bits(), 0);
    }

    #[test]
    fn vectors_and_actions_that_do_not_exist_are_refused() {
        let interrupts = Interrupts::new(2, false);
        let bad = [
            request(0, TRIGGER_FD, 0, 1),
            request(1, TRIGGER_FD, 0, 1),
            request(2, TRIGGER_FD, 1, 2),
            request(2, TRIGGER_FD, u32::MAX, u32::MAX),
            request(2, VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_DATA_NONE, 0, 1),
            request(9, TRIGGER_FD, 0, 1),
        ];
        for request in bad {
            let error = interrupts.set_irqs(&request, vec![]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{request:?}");
        }
    }
}
