//! Access rights, the neutral ground on which the formats' permissions meet.

use bitflags::bitflags;

bitflags! {
    /// What an access does, or what an entry allows.
    ///
    /// `READ` and `WRITE` are virtio's (virtio 1.4, 5.13.6.5); `EXEC` and `PRIVILEGED` matter only
    /// to formats that know them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Access: u8 {
        /// Reads memory.
        const READ = 1;
        /// Writes memory.
        const WRITE = 2;
        /// Fetches instructions.
        const EXEC = 4;
        /// Comes from, or is allowed to, privileged software only.
        const PRIVILEGED = 8;
    }
}

impl Access {
    /// Reads and writes.
    pub const RW: Self = Self::READ.union(Self::WRITE);

    /// True if an entry that allows `self` permits an access that does `wanted`.
    #[must_use]
    pub const fn permits(self, wanted: Self) -> bool {
        self.contains(wanted)
    }
}
