//! Adding to a flattened device tree (Devicetree Specification v0.4, chapter 5).
//!
//! QEMU writes the tree of its `virt` machine, but knows nothing of our IOMMU: the node and the map
//! are added here.

use crate::error::{Error, Result};

const MAGIC: u32 = 0xd00d_feed;
/// The version whose header this file reads and writes.
const VERSION: u32 = 17;
const HEADER_BYTES: u32 = 40;

/// Tokens of the structure block (5.4.1).
mod token {
    pub(super) const BEGIN_NODE: u32 = 1;
    pub(super) const END_NODE: u32 = 2;
    pub(super) const PROP: u32 = 3;
    pub(super) const NOP: u32 = 4;
    #[cfg(test)]
    pub(super) const END: u32 = 9;
}

/// A property: its name and its value's bytes.
pub(crate) type Property<'a> = (&'a str, Vec<u8>);

/// A device tree, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fdt {
    boot_cpu: u32,
    reserved: Vec<u8>,
    structure: Vec<u8>,
    strings: Vec<u8>,
}

/// The value of a property that consists of 32-bit cells.
pub(crate) fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

/// The value of a property that is text.
pub(crate) fn text(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

impl Fdt {
    /// Takes a tree apart.
    ///
    /// # Errors
    /// It is none, or one that this file cannot read.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let parsed = || {
            let word = |index: usize| u32_at(bytes, index * 4);
            let block = |at: u32, length: u32| {
                let at = usize::try_from(at).ok()?;
                bytes.get(at..at.checked_add(usize::try_from(length).ok()?)?)
            };
            if word(0)? != MAGIC || word(6)? > VERSION {
                return None;
            }
            let (structure_at, strings_at, reserved_at) = (word(2)?, word(3)?, word(4)?);
            Some(Self {
                boot_cpu: word(7)?,
                reserved: reserved_entries(bytes.get(usize::try_from(reserved_at).ok()?..)?)?,
                structure: block(structure_at, word(9)?)?.to_vec(),
                strings: block(strings_at, word(8)?)?.to_vec(),
            })
        };
        parsed().ok_or_else(|| Error::Answer { program: "QEMU", what: "no device tree".to_owned() })
    }

    /// Adds properties, and a node below, to the node of that name at the root.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn extend(
        &mut self,
        node: &str,
        properties: &[Property<'_>],
        child: (&str, &[Property<'_>]),
    ) -> Result<()> {
        let (inside, end) = self.find(node).ok_or_else(|| Error::Answer {
            program: "QEMU",
            what: format!("a device tree without {node}"),
        })?;
        let mut below = Vec::new();
        put(&mut below, token::BEGIN_NODE);
        below.extend(padded(text(child.0)));
        self.put_properties(&mut below, child.1);
        put(&mut below, token::END_NODE);
        let mut own = Vec::new();
        self.put_properties(&mut own, properties);
        // the later place first: the earlier one stays where it is
        self.structure.splice(end..end, below);
        self.structure.splice(inside..inside, own);
        Ok(())
    }

    /// The tree in one piece.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let reserved_at = HEADER_BYTES;
        let structure_at = reserved_at + length(&self.reserved);
        let strings_at = structure_at + length(&self.structure);
        let total = strings_at + length(&self.strings);
        let mut bytes = cells(&[
            MAGIC,
            total,
            structure_at,
            strings_at,
            reserved_at,
            VERSION,
            // the oldest version that a reader may take it for
            16,
            self.boot_cpu,
            length(&self.strings),
            length(&self.structure),
        ]);
        for block in [&self.reserved, &self.structure, &self.strings] {
            bytes.extend_from_slice(block);
        }
        bytes
    }

    /// Where the content of a node at the root begins, and where its end token is.
    fn find(&self, wanted: &str) -> Option<(usize, usize)> {
        let (mut at, mut depth, mut inside) = (0, 0, None);
        loop {
            let here = at;
            let token = u32_at(&self.structure, at)?;
            at += 4;
            match token {
                token::BEGIN_NODE => {
                    let name = self.structure.get(at..)?.split(|byte| *byte == 0).next()?;
                    at = (at + name.len() + 1).next_multiple_of(4);
                    depth += 1;
                    if depth == 2 && name == wanted.as_bytes() {
                        inside = Some(at);
                    }
                }
                token::END_NODE => {
                    if let Some(inside) = inside.filter(|_| depth == 2) {
                        return Some((inside, here));
                    }
                    depth -= 1;
                }
                token::PROP => {
                    let length = usize::try_from(u32_at(&self.structure, at)?).ok()?;
                    at = (at + 8).checked_add(length)?.checked_next_multiple_of(4)?;
                }
                token::NOP => {}
                // the end, or nothing that there is
                _ => return None,
            }
        }
    }

    /// Names go to the end of the strings, whether or not they are there already.
    fn put_properties(&mut self, to: &mut Vec<u8>, properties: &[Property<'_>]) {
        for (name, value) in properties {
            put(to, token::PROP);
            put(to, u32::try_from(value.len()).unwrap_or(u32::MAX));
            put(to, u32::try_from(self.strings.len()).unwrap_or(u32::MAX));
            to.extend(padded(value.clone()));
            self.strings.extend(text(name));
        }
    }
}

/// The entries of the memory reservation block, with the one of zeros that ends it (5.3).
fn reserved_entries(block: &[u8]) -> Option<Vec<u8>> {
    let entries = block.chunks_exact(16).position(|entry| entry.iter().all(|byte| *byte == 0))?;
    block.get(..(entries + 1) * 16).map(<[u8]>::to_vec)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_be_bytes(*chunk))
}

fn put(to: &mut Vec<u8>, word: u32) {
    to.extend_from_slice(&word.to_be_bytes());
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with a node `a` that has a property `p` and a node `b` below it, and a node `c`.
    fn tree() -> Fdt {
        let mut structure = Vec::new();
        for words in [
            cells(&[token::BEGIN_NODE, 0]),
            [cells(&[token::BEGIN_NODE]), padded(text("a"))].concat(),
            [cells(&[token::PROP, 5, 0]), padded(text("five"))].concat(),
            [cells(&[token::NOP, token::BEGIN_NODE]), padded(text("b"))].concat(),
            cells(&[token::END_NODE, token::END_NODE]),
            [cells(&[token::BEGIN_NODE]), padded(text("c"))].concat(),
            cells(&[token::END_NODE, token::END_NODE, token::END]),
        ] {
            structure.extend(words);
        }
        Fdt { boot_cpu: 0, reserved: vec![0; 16], structure, strings: text("p") }
    }

    #[test]
    fn a_tree_taken_apart_and_put_together_is_the_same() {
        let tree = tree();
        assert_eq!(Fdt::parse(&tree.bytes()).unwrap(), tree);
    }

    #[test]
    fn what_is_added_stands_inside_its_node_and_the_rest_is_as_before() {
        let before = tree();
        let mut after = before.clone();
        let map = ("map", cells(&[7]));
        after
            .extend("a", std::slice::from_ref(&map), ("new@8", &[("reg", cells(&[8, 9]))]))
            .unwrap();
        let new = [
            cells(&[token::BEGIN_NODE]),
            padded(text("new@8")),
            cells(&[token::PROP, 8, 2, 8, 9, token::END_NODE]),
        ]
        .concat();
        let own = cells(&[token::PROP, 4, 6, 7]);
        // the root takes 8 bytes, the beginning of `a` 8 more; its property 20, a gap 4, `b` 12
        let (inside, end) = (16, 16 + 20 + 4 + 12);
        let parts = [
            &before.structure[..inside],
            &own,
            &before.structure[inside..end],
            &new,
            &before.structure[end..],
        ];
        assert_eq!(after.structure, parts.concat());
        assert_eq!(after.strings, b"p\0reg\0map\0");
    }

    #[test]
    fn a_node_that_is_not_at_the_root_or_not_there_is_an_error() {
        for name in ["b", "d", ""] {
            assert!(tree().extend(name, &[], ("n", &[])).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_is_no_tree_is_an_error_wherever_it_ends() {
        let bytes = tree().bytes();
        for length in 0..bytes.len() {
            assert!(Fdt::parse(&bytes[..length]).is_err(), "{length}");
        }
    }
}
