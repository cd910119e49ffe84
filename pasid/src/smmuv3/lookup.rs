//! From (StreamID, SubstreamID) to page tables: at most 10 loads, whatever the bytes say.
//!
//! One or two loads find the place of the stream table entry, four read it; it is the same for the
//! context descriptor. A load through a second level is a walk of it, bounded by its levels.

use viommu_pgtable::{PhysAddr, TableMemory};

use super::cd::{ContextDescriptor, Stage1Table};
use super::fault::{LookupFault, LookupFaultKind};
use super::stage2::Stage2;
use super::ste::{Stage1, StreamConfig, StreamEntry, Untagged};
use super::stream::{Step, StreamRoot};
use super::{OUTPUT_BITS, USED_WORDS, field};
use crate::Pasid;
use crate::leaf::ENTRY_LG2;
use crate::lookup::{FirstTable, Route, SecondTable};
use crate::space::{Space, Spaces};

/// Level 1 context descriptor: bit 0 is V, bits 51:12 the leaf.
const L1_VALID: u64 = 1;
const L2_PTR: u64 = ((1 << 52) - 1) & !0xfff;

/// Finds how requests of `stream`, tagged with `pasid` or untagged, are translated.
///
/// The stream table lies in `spaces.tables()`; context descriptors lie there, in guest memory, or
/// behind the second level, as the stream table entry says.
///
/// # Errors
/// The first entry on the way that is missing, invalid or illegal, in the manual's order.
pub fn lookup<S: Spaces + ?Sized>(
    spaces: &S,
    root: &StreamRoot,
    stream: u32,
    pasid: Option<Pasid>,
) -> Result<Route, LookupFault> {
    let (entry, entry_at) = stream_entry(spaces.tables(), root, stream)?;
    let chosen = choose(&entry.config, pasid).map_err(|kind| LookupFault::new(kind, entry_at))?;
    match chosen {
        Chosen::Bypass => Ok(Route::PassThrough),
        Chosen::Stage2(second) => Ok(Route::Second(SecondTable::Arm(second))),
        Chosen::Context { first, second, index } => {
            let contexts = Contexts::new(spaces, first.contexts(), second);
            let descriptor = contexts.read(&first, index)?;
            Ok(contexts.route(descriptor))
        }
    }
}

fn stream_entry<M: TableMemory + ?Sized>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
) -> Result<(StreamEntry, PhysAddr), LookupFault> {
    let load = |at| memory.load(at).ok_or(LookupFault::new(LookupFaultKind::EntryFetch, at));
    let unknown = |at| LookupFault::new(LookupFaultKind::UnknownStream, at);
    let entry_at = match root.start(stream).ok_or(unknown(root.base()))? {
        Step::Entry(at) => at,
        Step::Pointer(at) => root.follow(load(at)?, stream).ok_or(unknown(at))?,
    };
    let mut words = [0; USED_WORDS];
    for (word, at) in words.iter_mut().zip(word_addresses(entry_at)) {
        *word = load(at)?;
    }
    let bad = LookupFault::new(LookupFaultKind::BadEntry, entry_at);
    Ok((StreamEntry::unpack(&words).ok_or(bad)?, entry_at))
}

/// What a stream table entry says to do with one request.
enum Chosen {
    Bypass,
    Stage2(Stage2),
    Context { first: Stage1, second: Option<Stage2>, index: u32 },
}

/// IHI 0070, 5.2: `Config`, `S1CDMax` and `S1DSS`.
fn choose(config: &StreamConfig, pasid: Option<Pasid>) -> Result<Chosen, LookupFaultKind> {
    let (first, second) = match *config {
        StreamConfig::Abort => return Err(LookupFaultKind::Aborted),
        StreamConfig::Bypass => (None, None),
        StreamConfig::Stage1(first) => (Some(first), None),
        StreamConfig::Stage2(second) => (None, Some(second)),
        StreamConfig::Nested { first, second } => (Some(first), Some(second)),
    };
    let without_stage1 = || second.map_or(Chosen::Bypass, Chosen::Stage2);
    match (first, pasid) {
        (None, None) => Ok(without_stage1()),
        (None, Some(_)) => Err(LookupFaultKind::BadSubstream),
        (Some(first), Some(pasid)) if pasid.raw() >> first.pasid_bits() != 0 => {
            Err(LookupFaultKind::BadSubstream)
        }
        (Some(first), Some(pasid)) => Ok(Chosen::Context { first, second, index: pasid.raw() }),
        (Some(first), None) => match first.untagged() {
            Untagged::Terminate => Err(LookupFaultKind::StreamDisabled),
            Untagged::Bypass => Ok(without_stage1()),
            Untagged::Context0 => Ok(Chosen::Context { first, second, index: 0 }),
        },
    }
}

/// The context descriptors of one stream.
struct Contexts<'a, S: ?Sized> {
    spaces: &'a S,
    /// True if the descriptors, and the pointers to them, are the daemon's: in the region.
    ours: bool,
    second: Option<Stage2>,
}

impl<'a, S: Spaces + ?Sized> Contexts<'a, S> {
    /// Those at `contexts`, an address that the daemon wrote.
    fn new(spaces: &'a S, contexts: PhysAddr, second: Option<Stage2>) -> Self {
        Self { spaces, ours: spaces.space_of(contexts) == Space::Tables, second }
    }

    fn load(&self, at: PhysAddr) -> Result<u64, LookupFault> {
        let missing = LookupFault::new(LookupFaultKind::ContextFetch, at);
        match &self.second {
            _ if self.ours => self.spaces.tables().load(at).ok_or(missing),
            None => self.spaces.load_guest(at).ok_or(missing),
            Some(second) => match self.spaces.load_through(second, at) {
                Ok(word) => word.ok_or(missing),
                Err(fault) => Err(LookupFault::new(LookupFaultKind::ContextThrough(fault), at)),
            },
        }
    }

    fn read(&self, first: &Stage1, index: u32) -> Result<ContextDescriptor, LookupFault> {
        let at = self.locate(first, index)?;
        let mut words = [0; USED_WORDS];
        for (word, at) in words.iter_mut().zip(word_addresses(at)) {
            *word = self.load(at)?;
        }
        let bad = LookupFault::new(LookupFaultKind::BadContext, at);
        ContextDescriptor::unpack(&words).ok_or(bad)
    }

    /// Where the descriptor of `index` is. All tables are aligned to their size, so nothing
    /// carries.
    fn locate(&self, first: &Stage1, index: u32) -> Result<PhysAddr, LookupFault> {
        let base = first.contexts().raw();
        let Some(leaf_lg2) = first.layout().leaf_lg2() else {
            return Ok(PhysAddr::new(base | u64::from(index) << ENTRY_LG2));
        };
        let pointer_at = PhysAddr::new(base | u64::from(index >> leaf_lg2) << 3);
        let pointer = self.load(pointer_at)?;
        // bits below the alignment of a leaf are reserved, and read as zero
        let leaf_bytes_lg2 = leaf_lg2 + ENTRY_LG2;
        let leaf = (pointer & L2_PTR) >> leaf_bytes_lg2 << leaf_bytes_lg2;
        if pointer & L1_VALID == 0 || leaf >> OUTPUT_BITS != 0 {
            return Err(LookupFault::new(LookupFaultKind::BadSubstream, pointer_at));
        }
        let in_leaf = field(u64::from(index), 0, u32::from(leaf_lg2));
        Ok(PhysAddr::new(leaf | in_leaf << ENTRY_LG2))
    }

    fn route(&self, descriptor: ContextDescriptor) -> Route {
        let table = FirstTable::Arm(descriptor);
        match self.second {
            Some(second) => Route::Nested { first: table, second: SecondTable::Arm(second) },
            None => Route::First { table, space: self.space_of_tables(&descriptor) },
        }
    }

    /// Stage 1 tables lie in the region only if the daemon wrote the descriptor, and every root
    /// does.
    fn space_of_tables(&self, descriptor: &ContextDescriptor) -> Space {
        let in_region = |table: &Stage1Table| self.spaces.space_of(table.root()) == Space::Tables;
        let all_in_region = descriptor.tables.iter().all(in_region);
        if self.ours && all_in_region { Space::Tables } else { Space::Guest }
    }
}

/// The addresses of the words of an entry, which is a multiple of its 64 bytes.
fn word_addresses(entry: PhysAddr) -> impl Iterator<Item = PhysAddr> {
    (0..).step_by(8).map(move |offset| PhysAddr::new(entry.raw() | offset))
}
