//! The section protocol: how a reader says that it is inside, and how the writer waits for it.
//!
//! # Words
//!
//! `epoch` is one word in the region, written by the daemon only, growing by one at each drain.
//! Each reader has a `slot` word of its own: [`IDLE`] outside a section, else an epoch not later
//! than the one whose tables it uses.
//!
//! # The two sides
//!
//! ```text
//! reader                                   writer
//! R1 slot = seen                           W1 withdraw from the tables
//! R2 fence(SeqCst)                         W2 epoch = new (Release)
//! R3 load epoch                            W3 fence(SeqCst)
//!    moved: flush, slot = epoch (Release)  W4 load slot (Acquire) until IDLE or >= new
//! R4 walk, use what was found              W5 reuse the withdrawn pages, answer
//! R5 slot = IDLE (Release)
//! ```
//!
//! # Why no access through a withdrawn entry happens after W4
//!
//! The fences R2 and W3 are in one total order.
//! - **R2 before W3**: W4 sees the store R1, or a later one of the same slot. It waits until R5 or
//!   until the reader re-published a later epoch, which it does only after it flushed what it knew.
//! - **W3 before R2**: R3 sees W2. The reader flushes its private translations, and because W2
//!   releases and R3 is followed by an acquire fence, its walks see W1.
//!
//! A reader that finds a new epoch at R3 has its old value in the slot until it stores the new one.
//! If the epoch moves again in between, the next writer meets one of the two values, and waits for
//! both.
//!
//! W4 and W5: what a reader loaded in its section happens before R5 (Release), and W4 reads R5
//! (Acquire), so a page that W5 zeroes is never seen half-way by an old section. R1 may be Relaxed:
//! when W4 passes on a value that R1 stored, that value is `>= new`, so the reader met the new
//! epoch in this entry or an earlier one; the fence R2 of that entry stands between its old
//! sections and this store, and releases them.

use crate::abi::State;
use crate::sync::{Ordering, Word};

/// A slot whose reader is outside; no epoch has this value.
pub(crate) const IDLE: u64 = 0;

/// What a reader that has not met any epoch publishes: older than all.
pub(crate) const UNSEEN: u64 = 1;

/// The epoch of a new region.
pub(crate) const FIRST_EPOCH: u64 = 2;

/// R1 to R3: says that a section begins, and returns the epoch that it found.
///
/// If that is `seen`, what the reader knew is still true. Otherwise it goes on with
/// [`begin_anew`]; before, it looks at nothing that the daemon wrote.
#[inline]
pub(crate) fn enter<E: Word, S: Word>(epoch: &E, slot: &S, seen: u64) -> u64 {
    // Relaxed: see the module's last paragraph; the fence orders it before the load below.
    slot.store(seen, Ordering::Relaxed);
    // pairs with the fence in `publish`
    S::fence(Ordering::SeqCst);
    // Relaxed, and a fence in `acquire`: the region is mapped read-only, where only relaxed loads
    // are defined. An unchanged epoch was acquired when it was first seen.
    epoch.load(Ordering::Relaxed)
}

/// Everything that the daemon did before the epoch that [`enter`] found is seen from here on.
fn acquire<S: Word>() {
    // pairs with the store in `publish`
    S::fence(Ordering::Acquire);
}

/// What a reader does that has [`enter`]ed and found another epoch, `now`: it looks at its state,
/// and either forgets what it knew and is inside, or is outside again. Returns the state.
pub(crate) fn begin_anew<S: Word>(
    slot: &S,
    now: u64,
    state: impl FnOnce() -> State,
    flush: impl FnOnce(),
) -> State {
    acquire::<S>();
    let state = state();
    if state == State::Running {
        flush();
        advance_to(slot, now);
    } else {
        leave(slot);
    }
    state
}

/// The reader has found epoch `now` and flushed: it no longer uses anything older.
fn advance_to<S: Word>(slot: &S, now: u64) {
    // Release: pairs with the load in `has_passed`
    slot.store(now, Ordering::Release);
}

/// R5: the section is over.
#[inline]
pub(crate) fn leave<S: Word>(slot: &S) {
    // Release: pairs with the load in `has_passed`
    slot.store(IDLE, Ordering::Release);
}

/// W2 and W3: what was withdrawn before is out of reach for every section that begins from now on.
pub(crate) fn publish<E: Word>(epoch: &E, new: u64) {
    // Release: pairs with the fence in `acquire`
    epoch.store(new, Ordering::Release);
    // pairs with the fence in `enter`
    E::fence(Ordering::SeqCst);
}

/// W4: true if the reader of `slot` uses nothing older than epoch `new`.
///
/// The word belongs to another process, which may write anything: it is loaded once.
pub(crate) fn has_passed<S: Word>(slot: &S, new: u64) -> bool {
    // Acquire: pairs with the stores in `leave` and `advance_to`
    let at = slot.load(Ordering::Acquire);
    at == IDLE || at >= new
}

/// [`has_passed`] of every reader of a connection: `used` has a bit for each slot in use, `slot` is
/// the word of one.
///
/// Both belong to another process: each word is loaded once.
pub(crate) fn all_have_passed<'s, S: Word + 's>(
    used: &S,
    slot: impl Fn(usize) -> Option<&'s S>,
    new: u64,
) -> bool {
    // Acquire: pairs with `take_bit` and `give_bit`. A bit that is set too late belongs to a reader
    // whose fence in `enter` comes after ours in `publish`, so it begins at the new epoch.
    let mut used = used.load(Ordering::Acquire);
    while used != 0 {
        let index = used.trailing_zeros() as usize;
        used &= used - 1;
        if !slot(index).is_none_or(|slot| has_passed(slot, new)) {
            return false;
        }
    }
    true
}
