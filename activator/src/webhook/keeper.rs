//! Sees to it, again and again, that certificates are good, that the API server knows the CA, and that namespaces have it.
//! In this order: nobody is shown a certificate before the CA that signed it has been handed out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::counter;

use super::authority::Pair;
use super::bundle::{BundleError, publish};
use super::call::{CallError, call};
use super::config::CertificateFiles;
use super::handout::Handout;
use super::store::{Kept, Store, StoreError};
use crate::server::tls::{Tls, TlsError};

/// Pause while all is well: how late another replica's change is noticed, far below the overlap of CAs.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Pause after a failure.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// The first minor version of Kubernetes 1 that starts native sidecars without a feature gate (KEP-753). Those before take
/// one for an init container that never ends.
const NATIVE_SIDECARS: u32 = 29;

/// Why something is not as it should be.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the certificate cannot be used")]
    Certificate(#[from] TlsError),
    #[error("there is no certificate where one should be")]
    NoCertificate,
    #[error("cannot ask the API server for its version")]
    Version(#[source] CallError),
    #[error(
        "Kubernetes {0} has no native sidecars: a pod that is injected would never start. At least 1.{NATIVE_SIDECARS} is needed"
    )]
    TooOld(String),
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the API server does not know the CA")]
    Bundle(#[from] BundleError),
    #[error("the namespaces cannot be looked at")]
    Handout(#[from] CallError),
}

/// Where certificates come from.
pub(super) enum Source {
    /// They are made and kept here, and a MutatingWebhookConfiguration is told the CA.
    Made { store: Box<Store>, configuration: Option<String> },
    /// Somebody else, cert-manager say, sees to them and to the configuration.
    Files(CertificateFiles),
}

/// Keeps certificates.
pub(super) struct Keeper {
    pub(super) client: kube::Client,
    pub(super) source: Source,
    pub(super) handout: Arc<Handout>,
}

impl Keeper {
    /// The first certificate, and the API server knows its CA. Comes as soon as it can be had.
    pub(super) async fn first(&self) -> (Tls, Held) {
        let mut told = None;
        loop {
            match self.try_first().await {
                Ok(first) => return first,
                Err(error) => tell(&error, &mut told),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    async fn try_first(&self) -> Result<(Tls, Held), KeepError> {
        let version = call(self.client.apiserver_version()).await.map_err(KeepError::Version)?;
        if !has_native_sidecars(&version.major, &version.minor) {
            return Err(KeepError::TooOld(version.git_version));
        }
        let held = self.look().await?;
        let (chain, key) = held.0.der().ok_or(KeepError::NoCertificate)?;
        Ok((Tls::from_der(chain, key)?.shown_by("webhook"), held))
    }

    /// Keeps all good from then on. Never returns.
    pub(super) async fn run(self, tls: Tls, mut held: Held) {
        let (mut told, mut pause) = (None, LOOK_EVERY);
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.renew(&tls, &mut held).await {
                Ok(()) => {
                    told = None;
                    LOOK_EVERY
                }
                Err(error) => {
                    tell(&error, &mut told);
                    RETRY_EVERY
                }
            };
        }
    }

    async fn renew(&self, tls: &Tls, held: &mut Held) -> Result<(), KeepError> {
        let found = self.look().await?;
        if found != *held {
            let (chain, key) = found.0.der().ok_or(KeepError::NoCertificate)?;
            tls.replace(chain, key)?;
            tracing::info!("another certificate is shown from now on");
            *held = found;
        }
        Ok(())
    }

    async fn look(&self) -> Result<Held, KeepError> {
        let (bundle, server) = match &self.source {
            Source::Made { store, configuration } => {
                let Kept { bundle, servers } = store.settle(SystemTime::now()).await?;
                if let Some(configuration) = configuration {
                    publish(self.client.clone(), configuration, &bundle).await?;
                }
                (bundle, servers.into_iter().next().ok_or(KeepError::NoCertificate)?)
            }
            Source::Files(CertificateFiles { certificate, key, ca }) => {
                let pair = Pair { certificate: read(certificate).await?, key: read(key).await? };
                (read(ca).await?, pair)
            }
        };
        self.handout.refresh(&bundle).await?;
        Ok(Held(server))
    }
}

/// The certificate that is shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held(Pair);

/// A minor version may have a `+` behind it.
fn has_native_sidecars(major: &str, minor: &str) -> bool {
    let minor = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    match (major.parse::<u32>(), minor.parse::<u32>()) {
        (Ok(1), Ok(minor)) => minor >= NATIVE_SIDECARS,
        (Ok(major), Ok(_)) => major > 1,
        // Nobody can say, so nobody is kept from it.
        _ => true,
    }
}

async fn read(path: &Path) -> Result<String, KeepError> {
    tokio::fs::read_to_string(path).await.map_err(|source| KeepError::Read { path: path.to_owned(), source })
}

/// Tells of a failure once, and again when it is another.
fn tell(error: &KeepError, told: &mut Option<String>) {
    counter!("podlight_webhook_failures_total").increment(1);
    let text = error.to_string();
    if told.as_ref() != Some(&text) {
        let error: &dyn std::error::Error = error;
        tracing::warn!(error, "certificates are not as they should be; trying on");
        *told = Some(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_without_native_sidecars_are_told_apart() {
        for (major, minor, has) in [
            ("1", "28", false),
            ("1", "28+", false),
            ("1", "29", true),
            ("1", "36+", true),
            ("2", "0", true),
            ("", "", true),
        ] {
            assert_eq!(has_native_sidecars(major, minor), has, "{major}.{minor}");
        }
    }
}
