//! A VMM: gives a device its memory and its interrupts, and does what a guest's accesses make it do.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfio_user::Client;

use super::{Daemon, Served};

/// Where the device finds memory, and how much: guest-physical addresses, or IOVAs if there is a daemon.
pub(crate) const RAM: u64 = 0x8000_0000;
pub(crate) const RAM_BYTES: u64 = 512 * PAGE;

const PAGE: u64 = 4096;
const PAGES: u64 = RAM_BYTES / PAGE;

const CONFIG_REGION: u32 = 7;
const MSIX_INDEX: u32 = 2;
const MSIX_ENABLE: u64 = 0x42;
/// Trigger by eventfd.
const SET_EVENTFD: u32 = 0x24;

/// How long an interrupt may take before a test has failed.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// A VMM with one device.
#[derive(Debug)]
pub(crate) struct Vmm {
    client: ClientBox,
    memory: File,
    interrupts: Vec<OwnedFd>,
    scattered: bool,
}

/// A client that can be shown.
struct ClientBox(Client);

impl std::fmt::Debug for ClientBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Bytes in a row of the memory's file.
struct FilePiece {
    file_offset: u64,
    bytes: usize,
}

impl Vmm {
    /// Connects, with `vectors` MSI-X vectors.
    pub(crate) fn new(served: &Served, vectors: u32) -> Self {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(RAM_BYTES).unwrap();
        let client = ClientBox(Client::new(&served.socket()).unwrap());
        let interrupts = (0..vectors).map(|_| eventfd(0, EventfdFlags::empty()).unwrap()).collect();
        let mut vmm = Self { client, memory, interrupts, scattered: false };
        vmm.map_ram();
        vmm.wire_interrupts();
        vmm
    }

    /// As [`new`](Self::new), with memory whose pages `daemon` maps one by one, in another order than
    /// they have in memory.
    pub(crate) fn behind(daemon: &Daemon, served: &Served, vectors: u32) -> Self {
        let vmm = Self { scattered: true, ..Self::new(served, vectors) };
        for page in (0..PAGES).map(|n| RAM + n * PAGE) {
            daemon.map(page, vmm.gpa(page), PAGE);
        }
        vmm
    }

    /// As QEMU does: enable first, with nothing to trigger, then vector by vector.
    fn wire_interrupts(&mut self) {
        self.write_config(MSIX_ENABLE, &0x8000u16.to_le_bytes());
        self.client.0.set_irqs(MSIX_INDEX, SET_EVENTFD, 0, 1, &[]).unwrap();
        for (vector, interrupt) in (0..).zip(&self.interrupts) {
            let fds = [interrupt.as_raw_fd()];
            self.client.0.set_irqs(MSIX_INDEX, SET_EVENTFD, vector, 1, &fds).unwrap();
        }
    }

    /// Reads from BAR 0.
    pub(crate) fn read_bar(&mut self, offset: u64, bytes: usize) -> Vec<u8> {
        self.read(0, offset, bytes)
    }

    /// Writes to BAR 0.
    pub(crate) fn write_bar(&mut self, offset: u64, data: &[u8]) {
        self.client.0.region_write(0, offset, data).unwrap();
    }

    /// Reads configuration space.
    pub(crate) fn read_config(&mut self, offset: u64, bytes: usize) -> Vec<u8> {
        self.read(CONFIG_REGION, offset, bytes)
    }

    fn read(&mut self, region: u32, offset: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.client.0.region_read(region, offset, &mut data).unwrap();
        data
    }

    /// Writes configuration space.
    pub(crate) fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.client.0.region_write(CONFIG_REGION, offset, data).unwrap();
    }

    /// Resets the function, and enables MSI-X again as a driver would.
    pub(crate) fn reset_function(&mut self) {
        self.client.0.reset().unwrap();
        self.write_config(MSIX_ENABLE, &0x8000u16.to_le_bytes());
    }

    pub(crate) fn unmap_ram(&mut self) {
        self.client.0.dma_unmap(RAM, RAM_BYTES).unwrap();
    }

    pub(crate) fn map_ram(&mut self) {
        self.client.0.dma_map(0, RAM, RAM_BYTES, self.memory.as_raw_fd()).unwrap();
    }

    /// The guest-physical address of what the device has at `address`.
    pub(crate) fn gpa(&self, address: u64) -> u64 {
        if !self.scattered {
            return address;
        }
        let (page, inside) = ((address - RAM) / PAGE, address % PAGE);
        // odd, so that it permutes a power of two
        RAM + (page * 5 + 3) % PAGES * PAGE + inside
    }

    /// Writes where the device has `address`.
    pub(crate) fn write_ram(&self, address: u64, data: &[u8]) {
        let mut done = 0;
        while let Some(piece) = self.piece(address + done as u64, data.len() - done) {
            let part = &data[done..done + piece.bytes];
            self.memory.write_all_at(part, piece.file_offset).unwrap();
            done += piece.bytes;
        }
    }

    /// Reads what the device has at `address`.
    pub(crate) fn read_ram(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        let mut done = 0;
        while let Some(piece) = self.piece(address + done as u64, bytes - done) {
            let part = &mut data[done..done + piece.bytes];
            self.memory.read_exact_at(part, piece.file_offset).unwrap();
            done += piece.bytes;
        }
        data
    }

    /// What of the `bytes` bytes at `address` lies in the first page; `None` if there are none.
    fn piece(&self, address: u64, bytes: usize) -> Option<FilePiece> {
        let in_page = usize::try_from(PAGE - address % PAGE).unwrap();
        let piece = FilePiece { file_offset: self.gpa(address) - RAM, bytes: bytes.min(in_page) };
        (bytes != 0).then_some(piece)
    }

    /// Waits for the interrupt of `vector`.
    pub(crate) fn wait(&self, vector: usize) {
        assert!(self.interrupted(vector, &PATIENCE), "no interrupt");
    }

    /// True if the interrupt of `vector` comes within `time`; takes it.
    pub(crate) fn interrupted(&self, vector: usize, time: &Timespec) -> bool {
        let interrupt = &self.interrupts[vector];
        let mut ready = [PollFd::new(interrupt, PollFlags::IN)];
        let came = poll(&mut ready, Some(time)).unwrap() == 1;
        if came {
            rustix::io::read(interrupt, &mut [0; 8]).unwrap();
        }
        came
    }

    /// The VMM goes away.
    pub(crate) fn leave(self) {
        self.client.0.shutdown().unwrap();
    }
}
