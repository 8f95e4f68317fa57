//! Why a pod is left as it is, and who is told.

/// Why a pod is not injected. The texts are for the pod's owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A namespace that is never injected.
    #[error("namespace {0} is never injected")]
    Namespace(String),
    /// The pod's own label.
    #[error("its label podlight.dev/inject is disabled")]
    Disabled,
    /// By hand, or at an earlier call.
    #[error("it has a container podlight-sidecar already")]
    AlreadyInjected,
    /// No sidecar runs there.
    #[error("it runs on Windows, where there is no sidecar")]
    Windows,
    /// A label or an annotation that cannot be used.
    #[error("{key} cannot be used: {fault}")]
    Setting {
        /// Which.
        key: String,
        /// Why not.
        fault: String,
    },
    /// A probe that is a command.
    #[error(
        "the {kind} of container {container} is a command, which no sidecar can run: the API server alone tells whether the \
         pod is ready. The annotation podlight.dev/probe-{container} can name another probe"
    )]
    Exec {
        /// Whose.
        container: String,
        /// readinessProbe or startupProbe.
        kind: &'static str,
    },
    /// A probe that the sidecar cannot ask as the kubelet would.
    #[error(
        "the {kind} of container {container} cannot be asked by a sidecar ({fault}): the API server alone tells whether the \
         pod is ready. The annotation podlight.dev/probe-{container} can name another probe"
    )]
    Probe {
        /// Whose.
        container: String,
        /// readinessProbe or startupProbe.
        kind: &'static str,
        /// Why not.
        fault: String,
    },
    /// More probes than a sidecar runs.
    #[error("it has more than {0} probes, the most that a sidecar runs")]
    TooManyProbes(usize),
    /// Nothing that a sidecar could tell readiness by.
    #[error("no container of it has a readinessProbe or declares a TCP port, so that there is nothing to probe")]
    NothingToProbe,
    /// A name that the sidecar needs.
    #[error("it has a volume called {0}, a name that the sidecar needs")]
    Volume(&'static str),
    /// No pod by its form.
    #[error("it is malformed: {0}")]
    Malformed(String),
}

/// Who is told that a pod was left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Nobody: it is as its owner wants it.
    None,
    /// Whoever creates the pod, by a warning.
    Caller,
    /// Whoever creates the pod, and by an Event those who look at it later: the controller of a workload reads no warnings.
    Everyone,
}

impl Reason {
    pub(super) fn setting(key: &str, fault: impl Into<String>) -> Self {
        Self::Setting { key: key.to_owned(), fault: fault.into() }
    }

    /// As in metric labels.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "namespace",
            Self::Disabled => "disabled",
            Self::AlreadyInjected => "already-injected",
            Self::Windows => "windows",
            Self::Setting { .. } => "setting",
            Self::Exec { .. } => "exec-probe",
            Self::Probe { .. } => "probe",
            Self::TooManyProbes(_) => "too-many-probes",
            Self::NothingToProbe => "nothing-to-probe",
            Self::Volume(_) => "volume",
            Self::Malformed(_) => "malformed",
        }
    }

    /// Who is told.
    pub const fn notice(&self) -> Notice {
        match self {
            Self::Disabled | Self::AlreadyInjected | Self::Windows => Notice::None,
            Self::Namespace(_) | Self::Malformed(_) => Notice::Caller,
            Self::Setting { .. }
            | Self::Exec { .. }
            | Self::Probe { .. }
            | Self::TooManyProbes(_)
            | Self::NothingToProbe
            | Self::Volume(_) => Notice::Everyone,
        }
    }
}
