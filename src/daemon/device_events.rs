//! What device processes say, on its way to the state machine.

use viommu_iotlb::{DeviceEvent, FaultRecord};
use viommu_pasid::{EndpointId, Requester};

use crate::device::Device;
use crate::host::Host;
use crate::protocol::Event;

/// One thing that a device process said.
pub(super) fn react(device: &mut Device<Host>, event: DeviceEvent) {
    match event {
        DeviceEvent::Connected { endpoint } => log::info!("device process of {endpoint} connected"),
        DeviceEvent::Disconnected { endpoint } => log::info!("device process of {endpoint} left"),
        DeviceEvent::FunctionReset { endpoint } => device.function_reset(endpoint),
        DeviceEvent::FunctionStarted { endpoint } => device.function_started(endpoint),
        DeviceEvent::Fault { endpoint, record } => report(device, endpoint, &record),
    }
}

/// A fault on its way to the guest. Why the access was refused is the state machine's to say: the record
/// is only a device process's claim.
fn report(device: &mut Device<Host>, endpoint: EndpointId, record: &FaultRecord) {
    log::debug!("fault of {endpoint}: {record:?}");
    let FaultRecord { pasid, iova, access, second_level, .. } = *record;
    let Some(reason) = device.iommu().fault_reason(Requester { endpoint, pasid }) else { return };
    let address = Some(iova);
    device.fault(Event { reason, access, endpoint, pasid, address, second_level });
}
