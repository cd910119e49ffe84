//! A device process: translations out of the shared memory, in this process or in one of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use viommu_iotlb::{AccessFault, Device, FaultClass, FaultRecord, Guard, Reader};
use viommu_pgtable::{Access, Iova};

use super::daemon::Daemon;

/// A device with one reader.
pub(crate) struct Dma {
    pub(crate) device: Device,
    pub(crate) reader: Reader,
}

/// Where an access leads: output address and length of each piece.
pub(crate) type Translation = Result<Vec<(u64, u64)>, AccessFault>;

impl Dma {
    /// Connects to the device socket of 0000:00:02.0.
    pub(crate) fn connect(daemon: &Daemon) -> Self {
        Self::connect_at(&daemon.device_socket())
    }

    /// Connects to a device socket.
    pub(crate) fn connect_at(socket: &Path) -> Self {
        let device = Device::connect(socket).unwrap();
        let reader = device.reader().unwrap();
        Self { device, reader }
    }

    /// Where an access leads now; a refused one is reported, as every device has to.
    pub(crate) fn access(&self, iova: u64, bytes: u64, access: Access) -> Translation {
        let guard = self.reader.enter().unwrap();
        let done = translate(&guard, iova, bytes, access);
        if let Err(fault) = &done {
            assert!(guard.report(fault), "no room for a fault");
        }
        done
    }

    /// Where a read of 4 KiB leads, or why it is refused.
    pub(crate) fn page(&self, iova: u64) -> Result<u64, FaultClass> {
        let guard = self.reader.enter().unwrap();
        match translate(&guard, iova, 0x1000, Access::READ) {
            Ok(pieces) => {
                assert_eq!(pieces.len(), 1);
                Ok(pieces[0].0)
            }
            Err(fault) => Err(FaultRecord::from(&fault).class),
        }
    }
}

/// Under a guard that is held.
pub(crate) fn translate(guard: &Guard<'_>, iova: u64, bytes: u64, access: Access) -> Translation {
    let pieces = guard.translate(None, Iova::new(iova), bytes, access);
    pieces.map(|piece| piece.map(|piece| (piece.gpa.raw(), piece.len))).collect()
}

/// Says to a process of this binary what it is: the path of a device socket.
const HOLDER: &str = "VIOMMU_IT_HOLDER";

/// A process that holds a guard for ever.
pub(crate) struct Holder {
    child: Child,
    _output: BufReader<ChildStdout>,
}

impl Holder {
    /// Starts one for 0000:00:02.0; it holds its guard when this returns.
    pub(crate) fn start(daemon: &Daemon) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "support::device::hold_a_guard_if_told_to", "--nocapture"])
            .env(HOLDER, daemon.device_socket())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("holding") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the holder ended");
        }
        Self { child, _output: output }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The holder's process. Run with the others it has nothing to do, and the tests that start it are the
/// ones that can fail.
#[test]
fn hold_a_guard_if_told_to() {
    let Some(path) = std::env::var_os(HOLDER) else { return };
    let device = Device::connect(&path).unwrap();
    let reader = device.reader().unwrap();
    let _guard = reader.enter().unwrap();
    println!("holding");
    loop {
        std::thread::park();
    }
}
