//! What is wrong with what a Service asks for, and whoever tells its owner.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::proxy::route::HostPattern;
use crate::table::group::{GroupKey, Service};

/// Something about a target that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetFault {
    /// An annotation that cannot be used; what it said last holds.
    Annotation {
        /// Which, without `podlight.dev/`.
        name: &'static str,
        /// What it says.
        value: Arc<str>,
        /// What it should say.
        expected: Arc<str>,
    },
    /// A host that another Service has.
    HostTaken {
        /// Which host.
        host: HostPattern,
        /// The Service that keeps it.
        by: GroupKey,
    },
    /// A host that nobody can claim: it is another Service's own name, or might be one day.
    HostReserved(HostPattern),
    /// The Service takes no requests at all.
    Unusable(Arc<str>),
}

impl TargetFault {
    /// As in metric labels.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Annotation { .. } => "annotation",
            Self::HostTaken { .. } => "host-taken",
            Self::HostReserved(_) => "host-reserved",
            Self::Unusable(_) => "unusable",
        }
    }

    pub(super) fn annotation(name: &'static str, value: &str, expected: impl Into<Arc<str>>) -> Self {
        Self::Annotation { name, value: value.into(), expected: expected.into() }
    }
}

impl fmt::Display for TargetFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Annotation { name, value, expected } => {
                write!(f, "podlight.dev/{name}: {value:?} must be {expected}; what it said before holds")
            }
            Self::HostTaken { host, by } => {
                write!(f, "podlight.dev/hosts: {host} belongs to {}/{}", by.namespace, by.service)
            }
            Self::HostReserved(host) => {
                write!(f, "podlight.dev/hosts: {host} is for the cluster's own names and cannot be claimed")
            }
            Self::Unusable(why) => f.write_str(why),
        }
    }
}

impl Serialize for TargetFault {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whoever tells a Service's owner of faults, as an Event on the Service.
pub trait Reporter: Send + Sync + 'static {
    /// All faults that a Service has now, whenever they are others than before and there is one. Must not block.
    fn report(&self, service: &Arc<Service>, faults: &[TargetFault]);
}

/// Reports to nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unreported;

impl Reporter for Unreported {
    fn report(&self, _: &Arc<Service>, _: &[TargetFault]) {}
}
