//! Memory that is fetched before it is needed.
//!
//! A load that misses the caches keeps the processor from finishing what comes after it, so that few such
//! waits overlap. A prefetch is finished as soon as it is under way.
#![expect(unsafe_code, reason = "the prefetch instruction")]

use std::ptr;

/// Bytes that come from memory together; a processor with longer lines is asked twice for some.
const LINE_BYTES: usize = 64;

/// Has the processor fetch `value`, all of it, and does not wait for that. A hint: where there is no
/// instruction for it, nothing happens.
///
/// `value` is aligned to 64 bytes or does not reach over a multiple of them; of another, the last
/// bytes may not be fetched.
#[inline]
pub fn prefetch<T>(value: &T) {
    let first = ptr::from_ref(value).cast::<u8>();
    for offset in (0..size_of::<T>()).step_by(LINE_BYTES) {
        fetch_line(first.wrapping_add(offset));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn fetch_line(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: 1. every x86-64 has the instruction; 2. it is a hint, which changes nothing and never
    // faults, whatever the address (Intel SDM, PREFETCHh).
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn fetch_line(at: *const u8) {
    // SAFETY: 1. it is a hint, which changes nothing and never faults, whatever the address (Arm ARM,
    // PRFM); 2. it uses no stack and no flags.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline]
fn fetch_line(_: *const u8) {}
