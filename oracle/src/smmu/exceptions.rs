//! Where QEMU's SMMUv3 is known to differ, and how exactly.
