//! Steps 6 to 8: does the pod own what the event claims? The pod is the one that the watch shows, else the one
//! that a single live GET returns; name, ServiceAccount, addresses and revision are compared with it. A label
//! or an address is never taken from the event.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::counter;
use podlight_proto::{Event, Kind, PodRef, PodUid};

use super::cache::Cache;
use super::flights::{Flights, NoAnswer};
use super::kubernetes::Kubernetes;
use super::locked;
use super::token::Subject;
use crate::cluster::ApiError;
use crate::table::entry::{Observation, Phase};
use crate::table::owner::{Clock, TableHandle};
use crate::table::{ListEpoch, Update};

/// How long a pod that a GET did not find is known to be gone. A uid never comes back, so this only bounds the
/// memory.
const GONE_FOR: Duration = Duration::from_secs(60);

/// Most such pods remembered.
const GONE_MAX: usize = 4_096;

/// Live GETs at once; one is needed only in the moment between a pod's creation and its watch event.
const GETS_IN_FLIGHT: usize = 16;

/// Live GETs that may wait for their turn.
const GETS_WAITING: usize = 4_096;

/// How long anybody waits for a GET: no longer than it may take.
const GET_PATIENCE: Duration = Duration::from_secs(2);

/// Why an event may not speak for its pod.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OwnershipError {
    /// There is no such pod, or its name belongs to another uid now.
    #[error("there is no pod of this namespace, name and uid")]
    NoSuchPod,
    /// The token is bound to another pod than `iss` names.
    #[error("iss is not the pod that the token is bound to")]
    OtherPod,
    /// The pod runs as another ServiceAccount.
    #[error("the pod does not run as the token's ServiceAccount")]
    OtherServiceAccount,
    /// Succeeded or Failed.
    #[error("the pod has ended")]
    Ended,
    /// A terminating pod does not become ready.
    #[error("the pod is terminating and cannot be ready")]
    Terminating,
    /// An address that is not the pod's.
    #[error("addresses holds one that is not in the pod's status.podIPs")]
    Address,
    /// Another revision than the pod's label has.
    #[error("revision is not the value of the pod's revision label")]
    Revision,
    /// The API server has published no address, and the event does not come from the one it names.
    #[error("the pod's addresses are not published yet, and the event does not come from the only one it names")]
    AddressNotPublished,
    /// The pod is not visible yet and the API server could not be asked.
    #[error("the pod is not visible yet and the Kubernetes API cannot be asked")]
    Unavailable(#[source] Option<ApiError>),
    /// Too many pods are being looked up.
    #[error("too many pods wait to be looked up")]
    Overloaded,
}

impl OwnershipError {
    /// The metric label.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::NoSuchPod => "no_such_pod",
            Self::OtherPod => "other_pod",
            Self::OtherServiceAccount => "other_service_account",
            Self::Ended => "pod_ended",
            Self::Terminating => "pod_terminating",
            Self::Address => "address",
            Self::Revision => "revision",
            Self::AddressNotPublished => "address_not_published",
            Self::Unavailable(_) => "pod_not_visible",
            Self::Overloaded => "pod_lookups_full",
        }
    }

    /// Whether the same event may be right a moment later.
    pub const fn is_undecided(&self) -> bool {
        match self {
            Self::AddressNotPublished | Self::Unavailable(_) | Self::Overloaded => true,
            Self::NoSuchPod
            | Self::OtherPod
            | Self::OtherServiceAccount
            | Self::Ended
            | Self::Terminating
            | Self::Address
            | Self::Revision => false,
        }
    }
}

/// Proof that an event's pod owns all that the event claims.
#[derive(Debug)]
pub struct Owned {
    pod: PodUid,
}

impl Owned {
    /// Whose event it is.
    pub(super) fn pod(&self) -> &PodUid {
        &self.pod
    }

    #[cfg(test)]
    pub(super) fn assumed(pod: PodUid) -> Self {
        Self { pod }
    }
}

/// What an event is compared with, beside its pod.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// What is claimed.
    pub event: &'a Event,
    /// Whom the verified token speaks for; none when the key alone vouches. Its ServiceAccount was compared when
    /// the key was bound, and a pod never changes its own.
    pub subject: Option<&'a Subject>,
    /// Where the event came from.
    pub peer: IpAddr,
}

impl Claim<'_> {
    /// Compares the claim with the pod.
    ///
    /// # Errors
    /// [`OwnershipError`]: what does not fit.
    pub fn check(&self, pod: &Observation) -> Result<Owned, OwnershipError> {
        let event = self.event;
        if pod.pod != event.pod {
            return Err(OwnershipError::NoSuchPod);
        }
        if let Some(subject) = self.subject {
            if !subject.is_pod(&pod.pod) {
                return Err(OwnershipError::OtherPod);
            }
            if *subject.service_account != *pod.service_account {
                return Err(OwnershipError::OtherServiceAccount);
            }
        }
        if pod.phase == Phase::Ended {
            return Err(OwnershipError::Ended);
        }
        if pod.terminating_since_ms.is_some() && says_ready(event) {
            return Err(OwnershipError::Terminating);
        }
        self.check_addresses(pod)?;
        if *event.revision != *pod.revision {
            return Err(OwnershipError::Revision);
        }
        Ok(Owned { pod: *event.pod.uid() })
    }

    fn check_addresses(&self, pod: &Observation) -> Result<(), OwnershipError> {
        let claimed = &self.event.addresses;
        if pod.addresses.is_empty() {
            // The status lags the start of containers; until then the network's word is all there is.
            let from_it = matches!(claimed.as_slice(), [only] if *only == self.peer.to_canonical());
            return if from_it { Ok(()) } else { Err(OwnershipError::AddressNotPublished) };
        }
        let published = |address: &IpAddr| pod.addresses.iter().any(|a| a.to_canonical() == *address);
        if claimed.iter().all(published) { Ok(()) } else { Err(OwnershipError::Address) }
    }
}

/// Whether the pod would be ready after this event.
pub(super) fn says_ready(event: &Event) -> bool {
    match event.kind {
        Kind::Ready => true,
        Kind::Heartbeat => event.ready,
        Kind::NotReady | Kind::Draining => false,
    }
}

type Found = Result<Arc<Observation>, OwnershipError>;

/// Finds pods and compares events with them.
pub(super) struct Ownership {
    kubernetes: Kubernetes,
    table: TableHandle,
    clock: Clock,
    gets: Flights<PodUid, Found>,
    gone: Mutex<Cache<PodUid, ()>>,
}

impl Ownership {
    pub(super) fn new(kubernetes: Kubernetes, table: TableHandle, clock: Clock) -> Self {
        let gets = Flights::new(GETS_IN_FLIGHT, GETS_WAITING, GET_PATIENCE);
        Self { kubernetes, table, clock, gets, gone: Mutex::new(Cache::new(GONE_MAX)) }
    }

    /// Compares an event with its pod. A pod that the watch does not show yet is asked for, and what the answer
    /// shows enters the table before the event can.
    pub(super) async fn check(&self, claim: Claim<'_>) -> Result<Owned, OwnershipError> {
        let pod = match self.kubernetes.pod(claim.event.pod.uid()) {
            Some(pod) => pod,
            None => self.ask(&claim.event.pod).await?,
        };
        claim.check(&pod)
    }

    async fn ask(&self, pod: &PodRef) -> Found {
        if locked(&self.gone).lookup(pod.uid(), self.clock.now().uptime).is_some() {
            return Err(OwnershipError::NoSuchPod);
        }
        if !self.kubernetes.reachable() {
            return Err(OwnershipError::Unavailable(None));
        }
        let asked_in = self.kubernetes.list_epoch();
        let (kubernetes, table, wanted) = (self.kubernetes.clone(), self.table.clone(), pod.clone());
        let call = || async move { get(&kubernetes, &table, &wanted, asked_in).await };
        let found = match self.gets.join(*pod.uid(), call).await {
            Ok(found) => found,
            Err(NoAnswer::Full) => Err(OwnershipError::Overloaded),
            Err(NoAnswer::Lost | NoAnswer::Late) => Err(OwnershipError::Unavailable(None)),
        };
        if matches!(found, Err(OwnershipError::NoSuchPod)) {
            let now = self.clock.now().uptime;
            locked(&self.gone).insert(*pod.uid(), (), now + GONE_FOR, now);
        }
        found
    }
}

async fn get(kubernetes: &Kubernetes, table: &TableHandle, wanted: &PodRef, asked_in: ListEpoch) -> Found {
    let found = match kubernetes.fetch_pod(wanted.namespace(), wanted.name()).await {
        Ok(Some(pod)) if pod.pod == *wanted => Ok(pod),
        Ok(_) => Err(OwnershipError::NoSuchPod),
        Err(error) => Err(OwnershipError::Unavailable(Some(error))),
    };
    let result = found.as_ref().err().map_or("found", OwnershipError::label);
    counter!("podlight_pod_lookups_total", "result" => result).increment(1);
    if let Ok(pod) = &found {
        table.update(Update::Fetched(Arc::clone(pod), asked_in)).await;
    }
    found
}

#[cfg(test)]
mod tests;
