//! What happens to the IOMMU as a whole: bypass, stop and go of the rings, resets.
//!
//! Stop of a guest, reset of the device and reboot look alike at first: both rings stop. So they
//! park: what goes through a domain waits. How the rings start again tells which it was, and the
//! caller says [`resume`](Iommu::resume) or [`reset`](Iommu::reset).
//!
//! Firmware that boots meanwhile wants its disk before any driver resets the IOMMU. An endpoint
//! whose function was reset, and which is parked, is therefore lent to it: its DMA goes as if it
//! were attached to nothing. While the rings run, a reset of a function changes nothing: a guest's
//! process that owns a function may reset it, and must not leave its domain by that.

use viommu_backend::{HostError, HostIommu, Target};
use viommu_pasid::{EndpointId, Requester};

use super::machine::{Iommu, Phase};
use super::state::Function;

impl Iommu {
    /// Sets `bypass`, and with it where DMA of the endpoints goes that are attached to nothing.
    ///
    /// # Errors
    /// What the host says; nothing changes. An endpoint that the host does not take back either is
    /// blocked until the next change.
    pub fn set_bypass(&mut self, host: &mut dyn HostIommu, on: bool) -> Result<(), HostError> {
        if on == self.bypass || self.phase == Phase::Made {
            self.bypass = on;
            return Ok(());
        }
        let target = if on { Target::Identity } else { Target::Blocked };
        let mut done = Vec::new();
        for (&id, endpoint) in &mut self.endpoints {
            if endpoint.attached.is_some() && !endpoint.lent_to_firmware {
                continue;
            }
            if let Err(error) = host.attach(Requester::rid(id), target) {
                self.take_back(host, &done);
                return Err(error);
            }
            done.push((id, std::mem::replace(&mut endpoint.target, target)));
        }
        self.bypass = on;
        Ok(())
    }

    /// Sends endpoints where they went before, the last moved first.
    fn take_back(&mut self, host: &mut dyn HostIommu, moved: &[(EndpointId, Target)]) {
        for &(id, target) in moved.iter().rev() {
            self.send_or_block(host, id, target);
        }
    }

    /// Both rings have stopped: accesses through a domain wait until [`resume`](Self::resume) or
    /// [`reset`](Self::reset). Endpoints that are attached to nothing follow `bypass` and go on.
    /// Idempotent.
    pub fn park(&mut self, host: &mut dyn HostIommu) {
        if self.phase != Phase::Running {
            return;
        }
        self.phase = Phase::Parked;
        let quiesced = |id: &EndpointId| {
            self.endpoints.get(id).is_some_and(|e| e.function == Function::Quiesced)
        };
        let (lent, waiting): (Vec<_>, Vec<_>) = self.attached().into_iter().partition(quiesced);
        for id in waiting {
            host.park(Requester::rid(id));
        }
        for id in lent {
            self.lend(host, id);
        }
    }

    /// The rings go on where they stopped: everything is attached as before the park. Idempotent.
    ///
    /// An endpoint that was lent to firmware goes back to its domain before any access that waits
    /// goes on; it is blocked if the host refuses that.
    pub fn resume(&mut self, host: &mut dyn HostIommu) {
        if self.phase != Phase::Parked {
            return;
        }
        self.phase = Phase::Running;
        let is_lent = |id: &EndpointId| self.endpoints.get(id).is_some_and(|e| e.lent_to_firmware);
        let (lent, waiting): (Vec<_>, Vec<_>) = self.attached().into_iter().partition(is_lent);
        for id in lent {
            self.take_from_firmware(host, id);
        }
        for id in waiting {
            host.resume(Requester::rid(id));
        }
    }

    /// The device is reset: nothing is attached any more, no domain is left, requests can come.
    /// `bypass` stays (C3). What the functions' processes said stays too.
    pub fn reset(&mut self, host: &mut dyn HostIommu) {
        if self.phase == Phase::Made {
            return;
        }
        self.phase = Phase::Running;
        let target = self.unattached_target();
        let ids: Vec<_> = self.endpoints.keys().copied().collect();
        for id in ids {
            let Some(endpoint) = self.endpoints.get_mut(&id) else { continue };
            endpoint.lent_to_firmware = false;
            if endpoint.attached.is_none() && endpoint.target == target {
                continue;
            }
            let sent = self.send_or_block(host, id, target);
            self.move_endpoint(host, id, None, sent);
        }
    }

    /// The front-end is gone, and with it the guest: a [`reset`](Self::reset), and `bypass` is what
    /// it is at boot.
    pub fn front_end_gone(&mut self, host: &mut dyn HostIommu) {
        self.bypass = self.settings.boot_bypass;
        self.reset(host);
    }

    /// The function of `endpoint` was reset and does no DMA until
    /// [`function_started`](Self::function_started). Takes effect only while parked; see the
    /// [module](super). The process that said so waits for the caller's [`HostIommu::sync`]. An
    /// endpoint that does not exist is ignored.
    pub fn function_reset(&mut self, host: &mut dyn HostIommu, endpoint: EndpointId) {
        let Some(state) = self.endpoints.get_mut(&endpoint) else { return };
        state.function = Function::Quiesced;
        if self.phase == Phase::Parked && state.attached.is_some() && !state.lent_to_firmware {
            self.lend(host, endpoint);
        }
    }

    /// The function of `endpoint` is about to do DMA again. What it was lent, it keeps until
    /// [`resume`](Self::resume) or [`reset`](Self::reset). An endpoint that does not exist is
    /// ignored.
    pub fn function_started(&mut self, endpoint: EndpointId) {
        if let Some(state) = self.endpoints.get_mut(&endpoint) {
            state.function = Function::Started;
        }
    }

    /// The endpoints that are attached to a domain.
    fn attached(&self) -> Vec<EndpointId> {
        let attached = self.endpoints.iter().filter(|(_, endpoint)| endpoint.attached.is_some());
        attached.map(|(&id, _)| id).collect()
    }

    fn lend(&mut self, host: &mut dyn HostIommu, id: EndpointId) {
        self.send_or_block(host, id, self.unattached_target());
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.lent_to_firmware = true;
        }
    }

    fn take_from_firmware(&mut self, host: &mut dyn HostIommu, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.lent_to_firmware = false;
        let Some(attached) = endpoint.attached else { return };
        let Some(domain) = self.domains.get(&attached) else { return };
        self.send_or_block(host, id, domain.target(attached));
    }

    /// Sends the DMA of `id` to `target`, or nowhere if the host refuses that, and notes which.
    ///
    /// To block only withdraws, which no host refuses: its backend would cut the endpoint off
    /// ([`HostIommu`]). Should it say so all the same, the log tells.
    fn send_or_block(
        &mut self,
        host: &mut dyn HostIommu,
        id: EndpointId,
        target: Target,
    ) -> Target {
        let requester = Requester::rid(id);
        let sent = match host.attach(requester, target) {
            Ok(()) => target,
            Err(error) => {
                log::error!("endpoint {id} is blocked: the host refused {target:?}: {error}");
                if let Err(error) = host.attach(requester, Target::Blocked) {
                    log::error!("endpoint {id}: the host refused to block it: {error}");
                }
                Target::Blocked
            }
        };
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.target = sent;
        }
        sent
    }
}
