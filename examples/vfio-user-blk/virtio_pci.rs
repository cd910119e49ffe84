//! The virtio-pci transport (virtio 1.4, 4.1), for any kind of device behind it.
//!
//! All structures lie in BAR 0, each in a page of its own. Left out: the legacy interface, access
//! through configuration space (`VIRTIO_PCI_CAP_PCI_CFG`), queue reset and notification data.

use std::io;
use std::sync::Arc;

use log::{debug, error};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::common_config::CommonRegister;
use super::notifier::Notifier;
use super::ring::RingSetup;
use super::support::{Device, Function, Interrupts, LayoutError, merge_register, read_register};

/// Bytes of BAR 0.
pub(crate) const REGISTER_BYTES: u32 = 0x4000;

/// Queue size that the driver is offered: one request of the most segments fits.
const QUEUE_SIZE_MAX: u16 = 128;

const COMMON: u64 = 0x0000;
const COMMON_BYTES: u64 = 0x38;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PAGE_BYTES: u64 = 0x1000;
/// Bytes from one queue's notification address to the next one's.
const NOTIFY_STRIDE: u32 = 4;

const VENDOR_CAPABILITY: u8 = 0x09;
// device status bits (virtio 1.4, 2.1)
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_DRIVER_OK: u8 = 4;
const STATUS_NEEDS_RESET: u8 = 64;

/// What is behind the transport.
pub(crate) trait VirtioDevice {
    /// Feature bits offered, VERSION_1 among them.
    fn features(&self) -> u64;

    /// Device configuration, read-only.
    fn configuration(&self) -> &[u8];

    /// Number of queues, at least 1.
    fn queues(&self) -> u16;

    /// The driver is ready: begins to serve the queues that it enabled (`None`: it did not).
    ///
    /// # Errors
    /// What prevents it; nothing is served then.
    fn start(
        &mut self,
        features: u64,
        queues: &[Option<RingSetup>],
        notifier: &Arc<Notifier>,
    ) -> io::Result<()>;

    /// The driver says that `queue` has new buffers; any number may come, at any time.
    fn notify(&mut self, queue: usize);

    /// Ends what [`start`](Self::start) began; returns when no DMA is under way. Idempotent.
    fn stop(&mut self);
}

/// The registers of a virtio-pci device.
#[derive(Debug)]
pub(crate) struct VirtioPci<V> {
    device: V,
    notifier: Arc<Notifier>,
    driver: DriverState,
}

/// All that the driver sets; a reset makes it anew.
#[derive(Debug, Default)]
struct DriverState {
    device_feature_select: u32,
    driver_feature_select: u32,
    features: u64,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
}

/// What the driver sets for one queue.
#[derive(Debug, Clone, Copy)]
struct QueueRegisters {
    enabled: bool,
    setup: RingSetup,
}

impl QueueRegisters {
    const POWER_ON: Self = Self {
        enabled: false,
        setup: RingSetup { size: QUEUE_SIZE_MAX, descriptors: 0, available: 0, used: 0 },
    };
}

impl DriverState {
    fn power_on(queues: u16) -> Self {
        let queues = vec![QueueRegisters::POWER_ON; usize::from(queues)];
        Self { queues, ..Self::default() }
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }
}

/// Lists the structures in the function's configuration space (virtio 1.4, 4.1.4).
///
/// # Errors
/// [`LayoutError::CapabilitiesFull`].
pub(crate) fn add_capabilities<V: VirtioDevice>(
    function: &mut Function<VirtioPci<V>>,
) -> Result<(), LayoutError> {
    const BAR: u8 = 0;
    let structures = [
        (1, COMMON, COMMON_BYTES, None),
        (2, NOTIFY, PAGE_BYTES, Some(NOTIFY_STRIDE)),
        (3, ISR, 1, None),
        (4, DEVICE, PAGE_BYTES, None),
    ];
    for (kind, offset, bytes, stride) in structures {
        let cap_len = if stride.is_some() { 20 } else { 16 };
        let mut body = vec![cap_len, kind, BAR, 0, 0, 0];
        body.extend(offset.to_le_bytes().into_iter().take(4));
        body.extend(bytes.to_le_bytes().into_iter().take(4));
        body.extend(stride.into_iter().flat_map(u32::to_le_bytes));
        function.add_capability(VENDOR_CAPABILITY, &body)?;
    }
    Ok(())
}

impl<V: VirtioDevice> VirtioPci<V> {
    /// The transport of `device`.
    pub(crate) fn new(device: V, interrupts: Arc<Interrupts>) -> Self {
        let notifier = Arc::new(Notifier::new(interrupts, device.queues()));
        let driver = DriverState::power_on(device.queues());
        Self { device, notifier, driver }
    }

    fn read_common(&self, register: CommonRegister) -> u64 {
        use CommonRegister as R;
        let driver = &self.driver;
        let queue = driver.selected();
        let of_queue = |value: fn(&QueueRegisters) -> u64| queue.map_or(0, value);
        match register {
            R::DeviceFeatureSelect => driver.device_feature_select.into(),
            R::DeviceFeature => half(self.device.features(), driver.device_feature_select),
            R::DriverFeatureSelect => driver.driver_feature_select.into(),
            R::DriverFeature => half(driver.features, driver.driver_feature_select),
            R::ConfigurationVector => self.notifier.configuration_vector().into(),
            R::QueueCount => self.device.queues().into(),
            R::Status => self.status().into(),
            R::Generation => 0,
            R::QueueSelect => driver.queue_select.into(),
            R::QueueSize => of_queue(|queue| queue.setup.size.into()),
            R::QueueVector => self.notifier.queue_vector(driver.queue_select.into()).into(),
            R::QueueEnable => of_queue(|queue| queue.enabled.into()),
            R::QueueNotifyOffset => queue.map_or(0, |_| driver.queue_select.into()),
            R::QueueDescriptors => of_queue(|queue| queue.setup.descriptors),
            R::QueueAvailable => of_queue(|queue| queue.setup.available),
            R::QueueUsed => of_queue(|queue| queue.setup.used),
        }
    }

    /// Writes the low bytes of `value`; the register's width bounds them, so narrowing loses nothing.
    fn write_common(&mut self, register: CommonRegister, value: u64) {
        use CommonRegister as R;
        let [b0, b1, b2, b3, ..] = value.to_le_bytes();
        let short = u16::from_le_bytes([b0, b1]);
        let long = u32::from_le_bytes([b0, b1, b2, b3]);
        match register {
            R::DeviceFeatureSelect => self.driver.device_feature_select = long,
            R::DriverFeatureSelect => self.driver.driver_feature_select = long,
            R::DriverFeature => self.accept_features(long),
            R::ConfigurationVector => self.notifier.set_configuration_vector(short),
            R::Status => self.set_status(b0),
            R::QueueSelect => self.driver.queue_select = short,
            R::QueueVector => {
                self.notifier.set_queue_vector(self.driver.queue_select.into(), short);
            }
            R::DeviceFeature | R::QueueCount | R::Generation | R::QueueNotifyOffset => {}
            R::QueueSize
            | R::QueueEnable
            | R::QueueDescriptors
            | R::QueueAvailable
            | R::QueueUsed => self.set_queue(register, value, short),
        }
    }

    /// A queue's registers are fixed once it is enabled.
    fn set_queue(&mut self, register: CommonRegister, value: u64, short: u16) {
        use CommonRegister as R;
        let selected = usize::from(self.driver.queue_select);
        let Some(queue) = self.driver.queues.get_mut(selected).filter(|queue| !queue.enabled)
        else {
            return;
        };
        match register {
            R::QueueSize if short.is_power_of_two() && short <= QUEUE_SIZE_MAX => {
                queue.setup.size = short;
            }
            R::QueueEnable => queue.enabled = short == 1,
            R::QueueDescriptors => queue.setup.descriptors = value,
            R::QueueAvailable => queue.setup.available = value,
            R::QueueUsed => queue.setup.used = value,
            _ => debug!("queue {selected}: {register:?} = {value:#x} ignored"),
        }
    }

    fn accept_features(&mut self, half: u32) {
        let mask = u64::from(u32::MAX);
        let shift = match self.driver.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.driver.status & STATUS_FEATURES_OK == 0 {
            let kept = self.driver.features & !(mask << shift);
            self.driver.features = kept | u64::from(half) << shift;
        }
    }

    fn status(&self) -> u8 {
        let broken = if self.notifier.needs_reset() { STATUS_NEEDS_RESET } else { 0 };
        self.driver.status | broken
    }

    /// The driver's steps of initialization (virtio 1.4, 3.1.1); 0 resets.
    fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.reset();
            return;
        }
        let mut status = status & !STATUS_NEEDS_RESET;
        let acceptable = self.features_acceptable();
        if self.driver.status & STATUS_FEATURES_OK == 0 && !acceptable {
            status &= !STATUS_FEATURES_OK;
        }
        let began = status & !self.driver.status & STATUS_DRIVER_OK != 0;
        self.driver.status = status;
        if began && status & STATUS_FEATURES_OK != 0 {
            self.start();
        }
    }

    fn features_acceptable(&self) -> bool {
        let chosen = self.driver.features;
        chosen & !self.device.features() == 0 && chosen >> VIRTIO_F_VERSION_1 & 1 == 1
    }

    fn start(&mut self) {
        let queues: Vec<_> =
            self.driver.queues.iter().map(|queue| queue.enabled.then_some(queue.setup)).collect();
        debug!("driver ready: features {:#x}, queues {queues:x?}", self.driver.features);
        if let Err(error) = self.device.start(self.driver.features, &queues, &self.notifier) {
            error!("cannot start: {error}");
            self.notifier.set_needs_reset();
        }
    }
}

impl<V: VirtioDevice> Device for VirtioPci<V> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            ..COMMON_BYTES => {
                if let Some((register, inside)) = CommonRegister::at(offset) {
                    read_register(self.read_common(register), inside, data);
                }
            }
            ISR => {
                let isr = self.notifier.take_isr();
                read_register(isr.into(), 0, data);
            }
            DEVICE..NOTIFY => {
                let start = usize::try_from(offset - DEVICE).unwrap_or(usize::MAX);
                let configuration = self.device.configuration().iter().skip(start);
                data.iter_mut().zip(configuration).for_each(|(to, from)| *to = *from);
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            ..COMMON_BYTES => {
                if let Some((register, inside)) = CommonRegister::at(offset) {
                    let value = merge_register(self.read_common(register), inside, data);
                    self.write_common(register, value);
                }
            }
            NOTIFY.. => {
                let queue = (offset - NOTIFY) / u64::from(NOTIFY_STRIDE);
                self.device.notify(usize::try_from(queue).unwrap_or(usize::MAX));
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.device.stop();
        self.notifier.reset();
        self.driver = DriverState::power_on(self.device.queues());
    }
}

/// The 32 bits of a feature set that a select register names; beyond 64 bits all are 0.
fn half(features: u64, select: u32) -> u64 {
    match select {
        0 => features & u64::from(u32::MAX),
        1 => features >> 32,
        _ => 0,
    }
}
