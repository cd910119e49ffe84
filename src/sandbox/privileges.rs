//! Privileges: none are kept, none can be gained.

use rustix::thread::{CapabilitySet, CapabilitySets};

/// An `execve`, were one possible, gives nothing that the process does not have.
pub(super) fn gain_none() -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(|error| error.to_string())
}

/// Gives up every capability but those in `kept` that are in force. A device process of another user can then
/// not be killed when it is stuck, only cut off.
pub(super) fn drop_all_but(kept: CapabilitySet) -> Result<(), String> {
    let now = rustix::thread::capabilities(None).map_err(|error| error.to_string())?;
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(|error| error.to_string())
}
