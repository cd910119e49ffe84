//! A guest while it runs, and the processes beside it.

pub(crate) mod fdt;
pub(crate) mod machine;
pub(crate) mod process;
pub(crate) mod qmp;
pub(crate) mod talk;
