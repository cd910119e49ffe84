//! Privileges: none are kept, none can be gained.

use rustix::thread::{CapabilitySet, CapabilitySets};

/// An `execve`, were one possible, gives nothing that the process does not have.
pub(super) fn gain_none() -> Result<(), String> {
    rustix::thread::set_no_new_privs(true).map_err(|error| error.to_string())
}

/// Gives up every capability. A device process of another user can then not be killed when it is stuck,
/// only cut off.
pub(super) fn drop_all() -> Result<(), String> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(|error| error.to_string())
}
