//! What happens to the IOMMU as a whole: bypass, stop and go of the rings, resets.
//!
//! Stop of a guest, reset of the device and reboot look alike at first: both rings stop. So they
//! park: what goes through a domain waits. How the rings start again tells which it was, and the
//! caller says [`resume`](Iommu::resume) or [`reset`](Iommu::reset). An endpoint's untagged traffic
//! and its PASIDs wait, return and end together.
//!
//! Firmware that boots meanwhile wants its disk before any driver resets the IOMMU. An endpoint whose
//! function was reset, and which is parked, is therefore lent to it: its DMA goes as if it were attached to
//! nothing, and its PASIDs are blocked: firmware knows none. While the rings run, a reset of a function
//! changes nothing: a guest's process that owns a function may reset it, and must not leave its domain by
//! that.

use viommu_backend::{DomainId, HostError, HostIommu, Target};
use viommu_pasid::{EndpointId, Pasid, Requester};

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
            if let Err(error) = host.send_unattached(Requester::rid(id), target) {
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
            self.each_requester(id, |requester| host.park(requester));
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
            self.each_requester(id, |requester| host.resume(requester));
        }
    }

    /// The device is reset: nothing is attached or bound any more, no domain is left, no endpoint has
    /// PASIDs enabled, requests can come. `bypass` stays (C3). What the functions' processes said stays too.
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
            let stays = endpoint.attached.is_none() && endpoint.target == target;
            self.detach_pasids(host, id);
            if stays {
                continue;
            }
            let sent = self.send_or_block(host, id, target);
            self.move_endpoint(host, id, None, sent);
        }
        self.unbind_all(host);
    }

    /// Takes all PASIDs of `id` out of their domains.
    fn detach_pasids(&mut self, host: &mut dyn HostIommu, id: EndpointId) {
        for (pasid, _) in self.pasids_of(id) {
            if let Err(error) = self.aux_detach(host, id, pasid) {
                log::error!("endpoint {id}: the host refused to block PASID {pasid}: {error}");
            }
        }
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.pasids.enabled = false;
        }
    }

    /// Takes all tables away. Nothing is attached, so the domains end with them.
    fn unbind_all(&mut self, host: &mut dyn HostIommu) {
        let bound = self.domains.iter().filter(|(_, domain)| domain.bound.is_some());
        let ids: Vec<_> = bound.map(|(&id, _)| id).collect();
        for id in ids {
            self.forget_table(host, id);
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
        if self.phase == Phase::Parked && state.is_attached() && !state.lent_to_firmware {
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

    /// The endpoints that are attached to a domain, by their untagged traffic or a PASID.
    fn attached(&self) -> Vec<EndpointId> {
        let attached = self.endpoints.iter().filter(|(_, endpoint)| endpoint.is_attached());
        attached.map(|(&id, _)| id).collect()
    }

    /// Calls `with` for all that is attached of endpoint `id`: its untagged traffic, each PASID.
    fn each_requester(&self, id: EndpointId, mut with: impl FnMut(Requester)) {
        let Some(endpoint) = self.endpoints.get(&id) else { return };
        if endpoint.attached.is_some() {
            with(Requester::rid(id));
        }
        let served = endpoint.pasids.iter().filter(|(pasid, _)| endpoint.pasids.is_served(*pasid));
        served.for_each(|(pasid, _)| with(Requester { endpoint: id, pasid: Some(pasid) }));
    }

    /// The PASIDs of `id` that are attached, and their domains.
    fn pasids_of(&self, id: EndpointId) -> Vec<(Pasid, DomainId)> {
        self.endpoints.get(&id).map(|endpoint| endpoint.pasids.iter().collect()).unwrap_or_default()
    }

    fn lend(&mut self, host: &mut dyn HostIommu, id: EndpointId) {
        for (pasid, _) in self.pasids_of(id) {
            self.send_pasid(host, id, pasid, Target::Blocked);
        }
        self.send_or_block(host, id, self.unattached_target());
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.lent_to_firmware = true;
        }
    }

    fn take_from_firmware(&mut self, host: &mut dyn HostIommu, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.lent_to_firmware = false;
        let attached = endpoint.attached;
        if let Some((id_of, domain)) = attached.and_then(|to| Some((to, self.domains.get(&to)?))) {
            self.send_or_block(host, id, domain.target(id_of));
        }
        for (pasid, domain) in self.pasids_of(id) {
            self.send_pasid(host, id, pasid, Target::Domain(domain));
        }
    }

    /// Sends the DMA of a PASID to `target`; it stays blocked if the host refuses that.
    fn send_pasid(
        &mut self,
        host: &mut dyn HostIommu,
        endpoint: EndpointId,
        pasid: Pasid,
        target: Target,
    ) {
        let sent = host.attach(Requester { endpoint, pasid: Some(pasid) }, target);
        if let Err(error) = &sent {
            log::error!("PASID {pasid} of {endpoint}: the host refused {target:?}: {error}");
        }
        if let Some(state) = self.endpoints.get_mut(&endpoint) {
            state.pasids.set_served(pasid, sent.is_ok() && target != Target::Blocked);
        }
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
        let sent = match target {
            Target::Domain(_) => host.attach(requester, target),
            // that of a bypass domain, too: the guest has attached it before, and the host knows
            Target::Identity | Target::Blocked => host.send_unattached(requester, target),
        };
        let sent = match sent {
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
