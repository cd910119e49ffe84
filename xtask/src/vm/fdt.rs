//! Adding to a flattened device tree (Devicetree Specification v0.4, chapter 5).
//!
//! QEMU writes the tree of its `virt` machine, but knows nothing of our IOMMU: the node and the map
//! are added here.

use std::ops::Range;

use crate::error::{Error, Result};

/// The host bridge in the tree of QEMU's `virt`.
pub(crate) const HOST_BRIDGE: &str = "pcie@10000000";

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

    /// Adds properties to the node of that name at the root.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn add_properties(&mut self, node: &str, new: &[Property<'_>]) -> Result<()> {
        let (inside, _) = self.find(node).ok_or_else(|| lacking(node))?;
        let mut properties = Vec::new();
        self.put_properties(&mut properties, new);
        self.structure.splice(inside..inside, properties);
        Ok(())
    }

    /// Adds a node below the one of that name at the root.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn add_below(&mut self, node: &str, new: (&str, &[Property<'_>])) -> Result<()> {
        let (_, end) = self.find(node).ok_or_else(|| lacking(node))?;
        let new = self.node(new);
        self.structure.splice(end..end, new);
        Ok(())
    }

    /// Adds a node to the root, behind the one of that name.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn add_behind(&mut self, node: &str, new: (&str, &[Property<'_>])) -> Result<()> {
        let (_, end) = self.find(node).ok_or_else(|| lacking(node))?;
        let behind = end + cells(&[token::END_NODE]).len();
        let new = self.node(new);
        self.structure.splice(behind..behind, new);
        Ok(())
    }

    /// The value of a property of the node of that name at the root.
    ///
    /// # Errors
    /// There is no such node, or it has no such property.
    pub(crate) fn value(&self, node: &str, property: &str) -> Result<&[u8]> {
        let place = self.place(node, property)?;
        self.structure.get(place).ok_or_else(|| lacking(node))
    }

    /// Writes another value over that of a property, which has to be as long.
    ///
    /// # Errors
    /// There is no such property, or its value is not as long.
    pub(crate) fn overwrite(&mut self, node: &str, (name, new): Property<'_>) -> Result<()> {
        let place = self.place(node, name)?;
        match self.structure.get_mut(place) {
            Some(old) if old.len() == new.len() => old.copy_from_slice(&new),
            _ => return Err(lacking(&format!("a {name} of {} bytes in {node}", new.len()))),
        }
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

    /// Where the value of a property is, of the node of that name at the root.
    fn place(&self, node: &str, property: &str) -> Result<Range<usize>> {
        let place = || {
            let (mut at, _) = self.find(node)?;
            loop {
                match u32_at(&self.structure, at)? {
                    token::NOP => at += 4,
                    token::PROP => {
                        let length = usize::try_from(u32_at(&self.structure, at + 4)?).ok()?;
                        let name = usize::try_from(u32_at(&self.structure, at + 8)?).ok()?;
                        let value = at + 12..(at + 12).checked_add(length)?;
                        let mut names = self.strings.get(name..)?.split(|byte| *byte == 0);
                        if names.next()? == property.as_bytes() {
                            return Some(value);
                        }
                        at = value.end.checked_next_multiple_of(4)?;
                    }
                    // a node's properties come before what is below it
                    _ => return None,
                }
            }
        };
        place().ok_or_else(|| lacking(&format!("{property} of {node}")))
    }

    /// A whole node with these properties.
    fn node(&mut self, (name, properties): (&str, &[Property<'_>])) -> Vec<u8> {
        let mut node = cells(&[token::BEGIN_NODE]);
        node.extend(padded(text(name)));
        self.put_properties(&mut node, properties);
        put(&mut node, token::END_NODE);
        node
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

fn lacking(what: &str) -> Error {
    Error::Answer { program: "QEMU", what: format!("a device tree without {what}") }
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
        after.add_below("a", ("new@8", &[("reg", cells(&[8, 9]))])).unwrap();
        after.add_properties("a", std::slice::from_ref(&map)).unwrap();
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
    fn what_is_added_behind_a_node_is_at_the_root_too() {
        let mut tree = tree();
        tree.add_behind("a", ("new", &[("q", cells(&[7]))])).unwrap();
        assert_eq!(tree.value("new", "q").unwrap(), cells(&[7]));
        assert_eq!(tree.value("a", "p").unwrap(), b"five\0");
        assert!(tree.value("c", "q").is_err());
        assert_eq!(Fdt::parse(&tree.bytes()).unwrap(), tree);
    }

    #[test]
    fn a_value_is_overwritten_by_one_as_long_and_by_no_other() {
        let before = tree();
        let mut after = before.clone();
        after.overwrite("a", ("p", text("nine"))).unwrap();
        assert_eq!(after.value("a", "p").unwrap(), b"nine\0");
        after.overwrite("a", ("p", text("five"))).unwrap();
        assert_eq!(after, before);
        for longer_or_other in [("p", text("seven")), ("p", Vec::new()), ("q", text("five"))] {
            assert!(after.overwrite("a", longer_or_other).is_err());
        }
        assert_eq!(after, before);
    }

    #[test]
    fn a_node_that_is_not_at_the_root_or_not_there_is_an_error() {
        for name in ["b", "d", ""] {
            assert!(tree().add_properties(name, &[]).is_err(), "{name:?}");
            assert!(tree().add_below(name, ("n", &[])).is_err(), "{name:?}");
            assert!(tree().add_behind(name, ("n", &[])).is_err(), "{name:?}");
            assert!(tree().value(name, "p").is_err(), "{name:?}");
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
