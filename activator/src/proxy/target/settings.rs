//! How requests reach one target, as its Service, its annotations and the process's defaults say together. Immutable:
//! a change of the Service makes new settings, which the next request reads.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// Which way requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Straight to the pod.
    #[default]
    Always,
    /// Straight to the pod while the ClusterIP may not lead there yet, then through the ClusterIP.
    ColdStartOnly,
    /// Through the ClusterIP; requests are held until some endpoint is ready.
    Disabled,
}

impl Mode {
    /// All of them, each at its own number.
    pub(in crate::proxy) const ALL: [Self; 3] = [Self::Always, Self::ColdStartOnly, Self::Disabled];

    /// As in annotations, JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::ColdStartOnly => "cold-start-only",
            Self::Disabled => "disabled",
        }
    }
}

/// Not the name of a [`Mode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be always, cold-start-only or disabled")]
pub struct NoMode;

impl FromStr for Mode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<Self, NoMode> {
        Self::ALL.into_iter().find(|m| m.as_str() == text).ok_or(NoMode)
    }
}

/// What the pods speak on the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// HTTP/1.1 in the clear.
    #[default]
    Http1,
    /// HTTP/2 in the clear, by prior knowledge.
    H2c,
    /// TLS; the version of HTTP is agreed in the handshake.
    Https,
}

impl AppProtocol {
    /// What a Service port's `appProtocol` means here. Whatever is not known is HTTP/1.1.
    pub fn of(app_protocol: Option<&str>) -> Self {
        match app_protocol.unwrap_or_default() {
            "kubernetes.io/h2c" | "h2c" | "grpc" => Self::H2c,
            "https" | "kubernetes.io/wss" => Self::Https,
            _ => Self::Http1,
        }
    }
}

/// How a backend's certificate is verified.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct UpstreamTls {
    /// The name that is sent as SNI and that the certificate must be valid for.
    pub server_name: Arc<str>,
    /// A Secret in the Service's namespace whose `ca.crt` signs the certificate; none for the process's own roots.
    pub ca_secret: Option<Arc<str>>,
}

/// What is scaled up for held requests, in the Service's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ScaleTarget {
    /// Its kind, as it was written: `Deployment`, `StatefulSet` or `ReplicaSet`, any other with its API group, as
    /// `Rollout.argoproj.io`.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ScaleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl Serialize for ScaleTarget {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How requests reach one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Which way they go.
    pub mode: Mode,
    /// Name of the Service port; empty for the only port of a Service.
    pub port_name: Arc<str>,
    /// Number of the Service port: the ClusterIP listens on it.
    pub service_port: u16,
    /// Number on the pods, where the Service declares no ports; else each pod's own for the Service port counts.
    pub pod_port: Option<u16>,
    /// What the pods speak.
    pub protocol: AppProtocol,
    /// How their certificates are verified; present exactly when the protocol is [`AppProtocol::Https`].
    pub tls: Option<UpstreamTls>,
    /// Most requests that one pod has at a time; unbounded when none. Which pod the ClusterIP leads to is not ours to
    /// say: through it all pods together have at most as many for each of them.
    pub concurrency: Option<NonZeroU32>,
    /// What to scale up while requests are held.
    pub scale_target: Option<ScaleTarget>,
    /// `<service>.<namespace>.svc`.
    pub server_name: Arc<str>,
    /// How long a request may be held.
    #[serde(serialize_with = "seconds")]
    pub hold_timeout: Duration,
}

impl Settings {
    /// Whether a connection made under the other settings may carry requests under these.
    pub(super) fn same_connections(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.tls == other.tls
    }
}

fn seconds<S: serde::Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(span.as_secs_f64())
}
