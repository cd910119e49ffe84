//! Where QEMU's SMMUv3 is known to differ from its manual.

use crate::subject::Exception;

/// The number of the event.
pub(super) static SPAN_EVENT: Exception = Exception {
    name: "StreamID beyond Span",
    manual: "IHI 0070, 5.1.1, 7.3.3: an index beyond the leaf is C_BAD_STREAMID",
    emulator: "reports C_BAD_STE",
};

/// The size of a leaf.
pub(super) static SPAN_SIZE: Exception = Exception {
    name: "Span twice as large",
    manual: "IHI 0070, 5.1.1: a leaf has 2^(Span - 1) entries, at most 2^Split",
    emulator: "takes it for 2^Span entries, of any number",
};

/// The address of a leaf.
pub(super) static LEAF_POINTER: Exception = Exception {
    name: "reserved bits of an L1STD",
    manual: "IHI 0070, 5.1.1: L2Ptr is bits 51:6; those above are RES0",
    emulator: "takes bits 63:52 for the leaf's address, too",
};

/// Bits that ask for what is not offered.
pub(super) static STAGE2_HTTU: Exception = Exception {
    name: "S2HA, S2HD not looked at",
    manual: "IHI 0070, 5.2: without IDR0.HTTU asking for updates of flags is illegal (C_BAD_STE)",
    emulator: "ignores both bits",
};

/// The address of a context descriptor.
pub(super) static CONTEXT_POINTER: Exception = Exception {
    name: "wide S1ContextPtr",
    manual: "IHI 0070, 5.2: bits 51:48 make the entry illegal here (OAS), those above are RES0",
    emulator: "takes bits 55:52 for the address, too, and reports F_CD_FETCH",
};

/// A stage 2 that starts too high.
pub(super) static START_LEVEL: Exception = Exception {
    name: "start level above the input",
    manual: "IHI 0070, 5.2 S2SL0; Arm ARM D8.2.2: it is illegal if S2T0SZ does not reach it",
    emulator: "starts there, with index 0, or with a root at address 0",
};

/// Fields that mean nothing.
pub(super) static UNUSED_STAGE1: Exception = Exception {
    name: "stage 1 fields without stage 1",
    manual: "IHI 0070, 5.2: S1CDMax and S1STALLD are ignored where Config has no stage 1",
    emulator: "finds the entry illegal (C_BAD_STE) if one of them is set",
};

/// The root that is not used.
pub(super) static BOTH_ROOTS: Exception = Exception {
    name: "both TTBs translated at once",
    manual: "IHI 0070, 3.4: a request uses the table that its address chooses",
    emulator: "sends both roots through stage 2 when it reads the context descriptor",
};

/// Whose request it is.
pub(super) static PRIVILEGED: Exception = Exception {
    name: "requests taken for privileged",
    manual: "Arm ARM D8.4; IHI 0070, 5.2: PCI requests are not, so AP[1] and APTable[0] deny",
    emulator: "does not look at these bits",
};

/// The rights of a table entry.
pub(super) static TABLE_RIGHTS: Exception = Exception {
    name: "APTable[1] ends the walk",
    manual: "Arm ARM D8.4, D8.15: a table's limit counts when the walk has reached a page",
    emulator: "reports F_PERMISSION at the table, whatever comes below",
};

/// A table that is out of reach.
pub(super) static TABLE_SIZE: Exception = Exception {
    name: "no address size fault at tables",
    manual: "Arm ARM D8.15, IHI 0070, 7.3.13: a table beyond the output's width is F_ADDR_SIZE",
    emulator: "reads there, and reports F_WALK_EABT",
};

/// Two faults of one entry.
pub(super) static RIGHTS_FIRST: Exception = Exception {
    name: "permission before address size",
    manual: "Arm ARM D8.15: of two faults of one entry the address size fault has priority",
    emulator: "reports the permission or access flag fault",
};

/// Reserved descriptors.
pub(super) static BLOCKS: Exception = Exception {
    name: "blocks where there are none",
    manual: "Arm ARM D8.3.1: 0b01 is reserved at levels without blocks: a translation fault",
    emulator: "takes it for a block of any size",
};

/// More than one root table.
pub(super) static CONCATENATED: Exception = Exception {
    name: "concatenated tables",
    manual: "Arm ARM D8.2.2; IHI 0070, 5.2 S2TTB: the index's upper bits choose one of up to 16",
    emulator: "always uses the first",
};

/// A root behind stage 2.
pub(super) static NARROW_ROOT: Exception = Exception {
    name: "nested root cut to IPS",
    manual: "IHI 0070, 5.4 IPS: limits what stage 1 yields, not where stage 2 puts its tables",
    emulator: "drops the address bits above IPS of the root after stage 2 has translated it",
};

/// An address that is out of reach.
pub(super) static BEYOND_OUTPUT: Exception = Exception {
    name: "no event for wide addresses",
    manual: "IHI 0070, 3.4, 7.3.13: more than OAS is F_ADDR_SIZE of stage 1, bypassed or not",
    emulator: "ends the request without an event where no context descriptor was read before",
};

/// Whose fault a table is.
pub(super) static TABLE_STAGE: Exception = Exception {
    name: "unreachable stage 1 tables, nested",
    manual: "IHI 0070, 7.3.12: S2 = 1 and the entry's IPA; a wide address is stage 1's (IN)",
    emulator: "reports stage 1 with class TT for tables below the root in both cases",
};
