//! The CA that the API server verifies the webhook with: part of the MutatingWebhookConfiguration, of which nothing else
//! is touched. Whoever is first among several replicas writes; the others find it written.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::api::PostParams;

use super::call::{CallError, call};

/// How often a change is tried anew after somebody else's.
const ATTEMPTS: usize = 5;

/// Why the API server may not know the CA.
#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    /// It does not hand out or take the configuration.
    #[error("cannot {verb} the MutatingWebhookConfiguration {name}")]
    Call {
        /// What was tried.
        verb: &'static str,
        /// Which configuration.
        name: String,
        /// What came of it.
        source: CallError,
    },
    /// There is none.
    #[error("there is no MutatingWebhookConfiguration {0}")]
    Missing(String),
    /// Others change it over and over.
    #[error("the MutatingWebhookConfiguration {0} changes all the time")]
    Contended(String),
}

/// Sees to it that every webhook of the configuration is verified with this bundle.
pub(super) async fn publish(client: kube::Client, name: &str, bundle: &str) -> Result<(), BundleError> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client);
    let failed = |verb| move |source| BundleError::Call { verb, name: name.to_owned(), source };
    for _ in 0..ATTEMPTS {
        let held = call(configurations.get_opt(name)).await.map_err(failed("read"))?;
        let Some(mut configuration) = held else { return Err(BundleError::Missing(name.to_owned())) };
        if !set(&mut configuration, bundle) {
            return Ok(());
        }
        match call(configurations.replace(name, &PostParams::default(), &configuration)).await {
            Ok(_) => {
                tracing::info!(configuration = name, "the API server was told the CA");
                return Ok(());
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(failed("write")(error)),
        }
    }
    Err(BundleError::Contended(name.to_owned()))
}

/// Whether that is a change.
fn set(configuration: &mut MutatingWebhookConfiguration, bundle: &str) -> bool {
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let mut changed = false;
    for webhook in configuration.webhooks.iter_mut().flatten() {
        let held = webhook.client_config.ca_bundle.replace(bundle.clone());
        changed |= held.as_ref() != Some(&bundle);
    }
    changed
}
