//! A virtio-blk request (virtio 1.4, 5.2.6): from a chain to what is to be done, and its answer.

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::GuestMemory;

use super::disk::{Disk, Extent};
use super::ring::{Chain, Inaccessible};

/// Most data segments of a request, told to the driver as `seg_max`: with header and status it is a
/// chain of 128 buffers, which fits a queue of 128 even without indirect descriptors.
pub(crate) const MAX_SEGMENTS: u32 = 126;
/// Longest segment, told to the driver as `size_max`: a page of the largest that kernels have.
pub(crate) const MAX_SEGMENT_BYTES: u32 = 64 << 10;
/// Most data bytes of a request, and so of a queue's private buffer.
pub(crate) const MAX_DATA_BYTES: u64 = MAX_SEGMENTS as u64 * MAX_SEGMENT_BYTES as u64;

/// Type, reserved, sector.
const HEADER_BYTES: usize = 16;
const STATUS_BYTES: u64 = 1;
const ID: &[u8; 13] = b"vfio-user-blk";

/// What a request asks of the disk. What it writes is in the queue's buffer by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Fill the buffer from here.
    Read(Extent),
    /// Write the buffer here.
    Write(Extent),
    /// Make what was written durable.
    Flush,
    /// Say which disk this is; the buffer holds the answer already.
    Id,
    /// Nothing; answer with this status.
    Refuse(Status),
}

/// The byte that ends each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(u8);

impl Status {
    /// Done.
    pub(crate) const OK: Self = Self(0);
    /// Failed: the disk, or the driver's buffers or sectors.
    pub(crate) const IO_ERROR: Self = Self(1);
    /// A kind of request that this device does not know.
    pub(crate) const UNSUPPORTED: Self = Self(2);
}

/// Decodes the request in `chain`. `buffer` then holds what is to be written, or has the length of
/// what is to be read.
pub(crate) fn decode<M: GuestMemory>(
    chain: &Chain,
    memory: &M,
    disk: &Disk,
    buffer: &mut Vec<u8>,
) -> Action {
    buffer.clear();
    try_decode(chain, memory, disk, buffer).unwrap_or(Action::Refuse(Status::IO_ERROR))
}

/// `Err` for a chain that is shorter than a request, or a buffer that cannot be read.
fn try_decode<M: GuestMemory>(
    chain: &Chain,
    memory: &M,
    disk: &Disk,
    buffer: &mut Vec<u8>,
) -> Result<Action, Inaccessible> {
    let mut header = [0; HEADER_BYTES];
    chain.readable.read(memory, 0, &mut header)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let written = chain.readable.total_bytes() - HEADER_BYTES as u64;
    let wanted = chain.writable.total_bytes().checked_sub(STATUS_BYTES).ok_or(Inaccessible)?;

    let extent = |bytes| disk.extent(sector, bytes).filter(|_| bytes <= MAX_DATA_BYTES);
    Ok(match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => match extent(wanted) {
            Some(extent) => {
                resize(buffer, wanted);
                Action::Read(extent)
            }
            None => Action::Refuse(Status::IO_ERROR),
        },
        VIRTIO_BLK_T_OUT => match extent(written).filter(|_| !disk.read_only()) {
            Some(extent) => {
                resize(buffer, written);
                chain.readable.read(memory, HEADER_BYTES as u64, buffer)?;
                Action::Write(extent)
            }
            None => Action::Refuse(Status::IO_ERROR),
        },
        VIRTIO_BLK_T_FLUSH => Action::Flush,
        VIRTIO_BLK_T_GET_ID => {
            buffer.extend_from_slice(ID);
            resize(buffer, wanted.min(u64::from(VIRTIO_BLK_ID_BYTES)));
            Action::Id
        }
        _ => Action::Refuse(Status::UNSUPPORTED),
    })
}

/// Does what was asked; may take as long as the disk takes.
pub(crate) fn execute(action: &Action, disk: &Disk, buffer: &mut [u8]) -> Status {
    let done = match *action {
        Action::Read(extent) => disk.read(extent, buffer),
        Action::Write(extent) => disk.write(extent, buffer),
        Action::Flush => disk.flush(),
        Action::Id => Ok(()),
        Action::Refuse(status) => return status,
    };
    match done {
        Ok(()) => Status::OK,
        Err(error) => {
            disk.report(&error);
            Status::IO_ERROR
        }
    }
}

/// Answers: data if there is some, then the status. Returns how many bytes were written.
///
/// Data that cannot be written makes the status an error; a status that cannot be written leaves
/// the driver with a used length of 0.
pub(crate) fn answer<M: GuestMemory>(
    action: &Action,
    status: Status,
    chain: &Chain,
    memory: &M,
    buffer: &[u8],
) -> u32 {
    let data = match action {
        Action::Read(_) | Action::Id if status == Status::OK => buffer,
        _ => &[],
    };
    let (status, bytes) = match chain.writable.write(memory, 0, data) {
        Ok(()) => (status, data.len()),
        Err(Inaccessible) => (Status::IO_ERROR, 0),
    };
    let at = chain.writable.total_bytes().checked_sub(STATUS_BYTES);
    let answered = at.is_some_and(|at| chain.writable.write(memory, at, &[status.0]).is_ok());
    if answered { u32::try_from(bytes + 1).unwrap_or(u32::MAX) } else { 0 }
}

/// Makes the buffer `bytes` long, which is at most [`MAX_DATA_BYTES`].
fn resize(buffer: &mut Vec<u8>, bytes: u64) {
    buffer.resize(usize::try_from(bytes).unwrap_or(0), 0);
}
