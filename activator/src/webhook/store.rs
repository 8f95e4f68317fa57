//! Where keys are kept: Secrets of the webhook's own namespace. Several replicas change them at once, so every change
//! names the version that it was made from: one replica's is taken, the others read it and go by it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use metrics::counter;

use super::authority::{Authority, AuthorityError, Pair};
use super::call::{CallError, call};

/// How often a change is tried anew after another replica was first.
const ATTEMPTS: usize = 5;

/// The keys of a CA's Secret.
const CA: [&str; 2] = ["ca.crt", "ca.key"];
const NEXT: [&str; 2] = ["next.crt", "next.key"];
const OLD: &str = "old.crt";

/// The keys of a server's Secret, as Kubernetes has them.
const SERVER: [&str; 2] = ["tls.crt", "tls.key"];
const BUNDLE: &str = "ca.crt";

type Data = BTreeMap<String, ByteString>;

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// The API server does not hand out or take a Secret.
    #[error("cannot {verb} the Secret {name}")]
    Call {
        /// What was tried.
        verb: &'static str,
        /// Which Secret.
        name: String,
        /// What came of it.
        source: CallError,
    },
    /// No certificate could be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Others were first, over and over.
    #[error("the Secret {0} changes all the time")]
    Contended(String),
}

/// A server that needs a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSecret {
    /// The Secret for it.
    pub secret: String,
    /// What clients call the server.
    pub names: Vec<String>,
}

/// The Secrets.
#[derive(Debug, Clone)]
pub(super) struct Store {
    secrets: Api<Secret>,
    ca: String,
    servers: Vec<ServerSecret>,
}

/// What they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// What clients are to trust.
    pub(super) bundle: String,
    /// The servers' certificates, in their order.
    pub(super) servers: Vec<Pair>,
}

impl Store {
    pub(super) fn new(client: kube::Client, namespace: &str, ca: &str, servers: Vec<ServerSecret>) -> Self {
        Self { secrets: Api::namespaced(client, namespace), ca: ca.to_owned(), servers }
    }

    /// Makes what is due and returns what holds.
    pub(super) async fn settle(&self, now: SystemTime) -> Result<Kept, StoreError> {
        let authority = self
            .keep(&self.ca, "Opaque", |data| {
                let due = Authority::due(authority(data).as_ref(), now)?;
                let data = due.changed.then(|| authority_data(&due.value));
                Ok((due.value, data))
            })
            .await?;
        let bundle = authority.bundle();
        let mut servers = Vec::with_capacity(self.servers.len());
        for ServerSecret { secret, names } in &self.servers {
            let server = self.keep(secret, "kubernetes.io/tls", |data| {
                let due = authority.server_due(pair(data, SERVER).as_ref(), names, now)?;
                let changed = due.changed || text(data, BUNDLE).as_deref() != Some(bundle.as_str());
                let data = changed.then(|| server_data(&due.value, &bundle));
                Ok((due.value, data))
            });
            servers.push(server.await?);
        }
        Ok(Kept { bundle, servers })
    }

    /// Reads a Secret, and writes it when `due` says what it should hold instead.
    async fn keep<T>(
        &self,
        name: &str,
        secret_type: &str,
        due: impl Fn(&Data) -> Result<(T, Option<Data>), AuthorityError>,
    ) -> Result<T, StoreError> {
        let failed = |verb| move |source| StoreError::Call { verb, name: name.to_owned(), source };
        for _ in 0..ATTEMPTS {
            let held = call(self.secrets.get_opt(name)).await.map_err(failed("read"))?;
            let (value, change) = due(held.as_ref().and_then(|secret| secret.data.as_ref()).unwrap_or(&Data::new()))?;
            let Some(data) = change else { return Ok(value) };
            let parameters = PostParams::default();
            let written = match held {
                Some(held) => {
                    // It names the version that it was read in.
                    let anew = Secret { data: Some(data), ..held };
                    call(self.secrets.replace(name, &parameters, &anew)).await
                }
                None => call(self.secrets.create(&parameters, &secret(name, secret_type, data))).await,
            };
            match written {
                Ok(_) => {
                    counter!("podlight_webhook_secret_writes_total", "result" => "written").increment(1);
                    tracing::info!(secret = name, "keys and certificates were written");
                    return Ok(value);
                }
                Err(error) if error.is_conflict() => {
                    counter!("podlight_webhook_secret_writes_total", "result" => "conflict").increment(1);
                    tracing::debug!(secret = name, "another replica was first");
                }
                Err(error) => return Err(failed("write")(error)),
            }
        }
        Err(StoreError::Contended(name.to_owned()))
    }
}

fn secret(name: &str, secret_type: &str, data: Data) -> Secret {
    let labels = [("app.kubernetes.io/managed-by", "podlight-webhook")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.into()), ..ObjectMeta::default() };
    Secret { metadata, type_: Some(secret_type.to_owned()), data: Some(data), ..Secret::default() }
}

fn text(data: &Data, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

fn pair(data: &Data, [certificate, key]: [&str; 2]) -> Option<Pair> {
    Some(Pair { certificate: text(data, certificate)?, key: text(data, key)? })
}

fn authority(data: &Data) -> Option<Authority> {
    const END: &str = "-----END CERTIFICATE-----\n";
    let old = text(data, OLD).unwrap_or_default();
    let old = old.split_inclusive(END).filter(|pem| pem.ends_with(END)).map(str::to_owned).collect();
    Some(Authority { current: pair(data, CA)?, next: pair(data, NEXT), old })
}

fn entries<const N: usize>(entries: [(&str, &str); N]) -> impl Iterator<Item = (String, ByteString)> {
    entries.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec()))).into_iter()
}

fn authority_data(authority: &Authority) -> Data {
    let of = |pair: &Pair, [certificate, key]: [&'static str; 2]| {
        entries([(certificate, &pair.certificate), (key, &pair.key)]).collect::<Vec<_>>()
    };
    let old: String = authority.old.iter().map(|pem| format!("{}\n", pem.trim_end())).collect();
    let next = authority.next.iter().flat_map(|pair| of(pair, NEXT));
    of(&authority.current, CA).into_iter().chain(next).chain(entries([(OLD, &old)])).collect()
}

fn server_data(server: &Pair, bundle: &str) -> Data {
    entries([(SERVER[0], &server.certificate), (SERVER[1], &server.key), (BUNDLE, bundle)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_comes_out_of_its_secret_as_it_went_in() {
        let made = |now| Authority::due(None, now).expect("makes").value;
        let (first, second, third) = (made(SystemTime::now()), made(SystemTime::now()), made(SystemTime::now()));
        let old = vec![second.current.certificate, third.current.certificate.clone()];
        for authority in [Authority { next: Some(third.current), old, ..first.clone() }, first] {
            let read = super::authority(&authority_data(&authority)).expect("an authority");
            assert_eq!(read.bundle(), authority.bundle());
            assert_eq!((read.current, read.next), (authority.current, authority.next));
        }
        assert!(super::authority(&Data::new()).is_none());
    }
}
