//! The guest's first file system: an archive in the "newc" format, which the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst in Linux).

use std::fs;

use crate::error::{Error, Result};
use crate::setup::guest_kernel::GuestKernel;

/// What is loaded, in this order, each after the modules that it needs; all are used by some
/// scenario.
const MODULES: &[&str] =
    &["virtio-pci", "virtio-iommu", "vfio-iommu-type1", "vfio-pci", "virtio-blk"];

/// The guest's init and the scenarios that it can run.
const INIT: &str = include_str!("../../guest/init.sh");

/// Type bits of a mode (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// A program to pack, by its name in the guest.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its name below `/bin`.
    pub(crate) name: &'static str,
    /// Its file, linked statically.
    pub(crate) bytes: Vec<u8>,
}

/// Packs busybox, the kernel's modules, the scripts and the programs.
///
/// # Errors
/// A module or busybox is missing or cannot be read.
pub(crate) fn pack(
    kernel: &GuestKernel,
    programs: &[Program],
    scripts: &[(&str, &str)],
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in ["bin", "dev", "proc", "sys", "tmp", "modules", "scenarios"] {
        archive.entry(name, Kind::plain(DIRECTORY | 0o755), &[]);
    }
    archive.entry("dev/console", CONSOLE, &[]);
    let busybox = fs::read(&kernel.busybox).map_err(Error::file("read", &kernel.busybox))?;
    archive.entry("bin/busybox", Kind::plain(REGULAR | 0o755), &busybox);
    archive.entry("bin/sh", Kind::plain(LINK | 0o777), b"busybox");
    archive.entry("init", Kind::plain(REGULAR | 0o755), INIT.as_bytes());
    for (name, text) in scripts {
        let path = format!("scenarios/{name}.sh");
        archive.entry(&path, Kind::plain(REGULAR | 0o644), text.as_bytes());
    }
    for program in programs {
        let path = format!("bin/{}", program.name);
        archive.entry(&path, Kind::plain(REGULAR | 0o755), &program.bytes);
    }
    let mut modules = Vec::new();
    for name in MODULES {
        add_module(kernel, name, &mut modules)?;
    }
    for (order, (name, bytes)) in modules.iter().enumerate() {
        let path = format!("modules/{order:02}-{name}.ko");
        archive.entry(&path, Kind::plain(REGULAR | 0o644), bytes);
    }
    Ok(archive.finish())
}

/// Packs one program, which is all that the guest runs: its first process.
pub(crate) fn alone(program: &Program) -> Vec<u8> {
    let mut archive = Archive::default();
    for name in ["dev", "tmp"] {
        archive.entry(name, Kind::plain(DIRECTORY | 0o755), &[]);
    }
    archive.entry("dev/console", CONSOLE, &[]);
    archive.entry("init", Kind::plain(REGULAR | 0o755), &program.bytes);
    archive.finish()
}

/// Adds a module after those that it needs; one that is built in, or there already, is passed over.
fn add_module(
    kernel: &GuestKernel,
    name: &str,
    modules: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if modules.iter().any(|(there, _)| there == name) {
        return Ok(());
    }
    let Some(bytes) = kernel.module(name)? else { return Ok(()) };
    for needed in needed_by(&bytes) {
        add_module(kernel, &needed, modules)?;
    }
    modules.push((name.to_owned(), bytes));
    Ok(())
}

/// The modules that a module says it needs: the entry `depends=A,B` among the strings of its
/// section `.modinfo`.
fn needed_by(module: &[u8]) -> Vec<String> {
    let entry = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(entry.unwrap_or_default()).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('_', "-")).collect()
}

/// An archive that grows entry by entry.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy)]
struct Kind {
    /// Type and permissions.
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
}

/// The kernel opens it for init before anything is mounted.
const CONSOLE: Kind = Kind { mode: CHARACTER_DEVICE | 0o600, device: (5, 1) };

impl Kind {
    const fn plain(mode: u32) -> Self {
        Self { mode, device: (0, 0) }
    }
}

impl Archive {
    /// Adds an entry; its folder comes before it. A link's content is its target.
    fn entry(&mut self, path: &str, kind: Kind, content: &[u8]) {
        self.entries += 1;
        let (major, minor) = kind.device;
        let (mode, inode) = (kind.mode, self.entries);
        let (size, name_size) = (content.len(), path.len() + 1);
        // inode, mode, uid, gid, links, time, size, device of the file system, device, name, check
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}\
             {major:08x}{minor:08x}{name_size:08x}{:08x}",
            0, 0, 1, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", Kind::plain(0), &[]);
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_of_110_characters_then_name_and_content_each_padded_to_four() {
        let mut archive = Archive::default();
        archive.entry("ab", Kind { mode: 0o100_644, device: (5, 1) }, b"hello");
        let expected = "070701\
            00000001000081a4000000000000000000000001000000000000000500000000\
            00000000000000050000000100000003\
            00000000ab\0\0\0\0hello\0\0\0";
        // 110 + 3 is 113, so three more zero bytes follow the name
        assert_eq!(String::from_utf8(archive.bytes).unwrap(), expected);
    }

    #[test]
    fn a_module_names_what_it_needs_with_either_spelling() {
        let module = b"\x7fELF\0license=GPL\0depends=vfio,vfio_pci_core\0name=vfio_pci\0";
        assert_eq!(needed_by(module), ["vfio", "vfio-pci-core"]);
        assert!(needed_by(b"\x7fELF\0depends=\0name=virtio\0").is_empty());
    }

    #[test]
    fn a_program_alone_is_the_first_process() {
        let archive = alone(&Program { name: "it", bytes: b"what it is".to_vec() });
        let archive = String::from_utf8(archive).unwrap();
        assert!(archive.contains("init\0\0what it is"), "{archive:?}");
        assert!(!archive.contains("bin/it"));
    }

    #[test]
    fn the_archive_ends_with_its_trailer() {
        let bytes = Archive::default().finish();
        assert_eq!(bytes.len() % 4, 0);
        assert!(String::from_utf8(bytes).unwrap().contains("TRAILER!!!\0"));
    }
}
