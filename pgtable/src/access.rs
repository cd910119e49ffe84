//! Access rights, the neutral ground on which the formats' permissions meet.

use bitflags::bitflags;

bitflags! {
    /// What an access does, or what an entry allows.
    ///
    /// `READ` and `WRITE` are virtio's (virtio 1.4, 5.13.6.5); `EXEC` and `PRIVILEGED` matter only
    /// to formats that know them. The `PRIVILEGED_*` three occur only in decoded entries of formats
    /// that tell privileged software apart: there `READ`, `WRITE` and `EXEC` are the rights of
    /// everybody else. So the rights of a path are always the intersection of its entries' rights.
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
        /// In an entry: privileged software may read.
        const PRIVILEGED_READ = 16;
        /// In an entry: privileged software may write.
        const PRIVILEGED_WRITE = 32;
        /// In an entry: privileged software may fetch instructions.
        const PRIVILEGED_EXEC = 64;
    }
}

impl Access {
    /// Reads and writes.
    pub const RW: Self = Self::READ.union(Self::WRITE);

    /// Reads, writes and fetches: everything that one requester can be granted.
    pub const RWX: Self = Self::RW.union(Self::EXEC);

    /// True if an entry that allows `self` permits an access that does `wanted`.
    #[must_use]
    pub const fn permits(self, wanted: Self) -> bool {
        self.contains(wanted)
    }

    /// The rights `READ`, `WRITE` and `EXEC` of `self` as those of privileged software.
    #[must_use]
    pub const fn to_privileged(self) -> Self {
        Self::from_bits_truncate((self.bits() & Self::RWX.bits()) << 4)
    }

    /// The rights of privileged software in `self` as `READ`, `WRITE` and `EXEC`.
    #[must_use]
    pub const fn from_privileged(self) -> Self {
        Self::from_bits_truncate((self.bits() >> 4) & Self::RWX.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_rights_mirror_the_plain_ones() {
        let privileged = Access::PRIVILEGED_READ | Access::PRIVILEGED_WRITE;
        assert_eq!(Access::RW.to_privileged(), privileged);
        assert_eq!(privileged.from_privileged(), Access::RW);
        assert_eq!(Access::EXEC.to_privileged(), Access::PRIVILEGED_EXEC);
        assert_eq!((Access::RWX | privileged).from_privileged(), Access::RW);
    }
}
