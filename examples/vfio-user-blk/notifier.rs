//! How the device tells the driver something: MSI-X vectors that the driver chose, or INTA# and the
//! ISR register (virtio 1.4, 4.1.4.5).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::support::Interrupts;

/// A vector register that stands for "no interrupt" (virtio 1.4, 4.1.5.1.2.1).
pub(crate) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIGURATION: u8 = 2;

/// Interrupts of a virtio device; shared by its threads.
#[derive(Debug)]
pub(crate) struct Notifier {
    interrupts: Arc<Interrupts>,
    vectors: u16,
    /// One lock over the ISR and the line: else a read that clears could drop a fresh interrupt.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    isr: u8,
    needs_reset: bool,
    configuration: u16,
    queues: Vec<u16>,
}

impl State {
    fn power_on(queues: usize) -> Self {
        let queues = vec![NO_VECTOR; queues];
        Self { isr: 0, needs_reset: false, configuration: NO_VECTOR, queues }
    }
}

impl Notifier {
    /// For `queues` queues, with a vector for each and one for configuration changes.
    pub(crate) fn new(interrupts: Arc<Interrupts>, queues: u16) -> Self {
        let state = Mutex::new(State::power_on(usize::from(queues)));
        Self { interrupts, vectors: queues + 1, state }
    }

    /// Back to power-on.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        *state = State::power_on(state.queues.len());
        self.interrupts.set_intx(false);
    }

    /// Buffers of `queue` were used.
    pub(crate) fn queue_used(&self, queue: usize) {
        let mut state = self.lock();
        let vector = state.queues.get(queue).copied().unwrap_or(NO_VECTOR);
        self.raise(&mut state, ISR_QUEUE, vector);
    }

    /// The device can't go on until the driver resets it (virtio 1.4, 2.1.2).
    pub(crate) fn set_needs_reset(&self) {
        let mut state = self.lock();
        state.needs_reset = true;
        let vector = state.configuration;
        self.raise(&mut state, ISR_CONFIGURATION, vector);
    }

    /// True after [`set_needs_reset`](Self::set_needs_reset), until [`reset`](Self::reset).
    pub(crate) fn needs_reset(&self) -> bool {
        self.lock().needs_reset
    }

    /// Reads the ISR register, which clears it and INTA#.
    pub(crate) fn take_isr(&self) -> u8 {
        let mut state = self.lock();
        self.interrupts.set_intx(false);
        std::mem::take(&mut state.isr)
    }

    /// The vector for configuration changes.
    pub(crate) fn configuration_vector(&self) -> u16 {
        self.lock().configuration
    }

    /// Sets the vector for configuration changes; one that does not exist becomes [`NO_VECTOR`].
    pub(crate) fn set_configuration_vector(&self, vector: u16) {
        self.lock().configuration = self.existing(vector);
    }

    /// The vector of `queue`.
    pub(crate) fn queue_vector(&self, queue: usize) -> u16 {
        self.lock().queues.get(queue).copied().unwrap_or(NO_VECTOR)
    }

    /// Sets the vector of `queue`; one that does not exist becomes [`NO_VECTOR`].
    pub(crate) fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(of_queue) = self.lock().queues.get_mut(queue) {
            *of_queue = self.existing(vector);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    fn raise(&self, state: &mut State, isr: u8, vector: u16) {
        if self.interrupts.msix_enabled() {
            self.interrupts.raise_msix(vector);
        } else {
            state.isr |= isr;
            self.interrupts.set_intx(true);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_the_isr_clears_it_and_the_line() {
        let interrupts = Arc::new(Interrupts::new(2, true));
        let notifier = Notifier::new(Arc::clone(&interrupts), 1);
        notifier.queue_used(0);
        notifier.set_needs_reset();
        assert!(interrupts.intx_asserted());
        assert_eq!((notifier.take_isr(), notifier.take_isr()), (3, 0));
        assert!(!interrupts.intx_asserted());
    }

    #[test]
    fn with_msix_the_chosen_vectors_are_raised_and_the_isr_stays_clear() {
        let interrupts = Arc::new(Interrupts::new(3, true));
        let notifier = Notifier::new(Arc::clone(&interrupts), 2);
        interrupts.configure(true, false);
        notifier.queue_used(1);
        assert_eq!(interrupts.pending_bits(), 0, "no vector chosen yet");
        notifier.set_queue_vector(1, 2);
        notifier.set_configuration_vector(0);
        notifier.queue_used(1);
        assert_eq!(interrupts.pending_bits(), 0b100);
        notifier.set_needs_reset();
        assert_eq!((interrupts.pending_bits(), notifier.take_isr()), (0b101, 0));
    }

    #[test]
    fn a_vector_that_does_not_exist_reads_back_as_none() {
        let notifier = Notifier::new(Arc::new(Interrupts::new(3, false)), 2);
        notifier.set_queue_vector(0, 2);
        notifier.set_queue_vector(1, 3);
        notifier.set_queue_vector(2, 0);
        notifier.set_configuration_vector(7);
        let queues: Vec<u16> = (0..3).map(|queue| notifier.queue_vector(queue)).collect();
        assert_eq!(queues, [2, NO_VECTOR, NO_VECTOR]);
        assert_eq!(notifier.configuration_vector(), NO_VECTOR);
    }
}
