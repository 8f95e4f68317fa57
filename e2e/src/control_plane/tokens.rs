//! Service account tokens: real ones by TokenRequest, one or thousands, and altered ones with a true signature.

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::Value;

use super::{ControlPlane, lock, uid};

/// Requests of a batch that are under way at once: enough to keep two cores busy.
const IN_FLIGHT: usize = 16;

/// A token to ask for: audience `podlight` for an hour, bound to nothing, unless told otherwise.
#[derive(Clone, Debug)]
pub struct TokenSpec {
    namespace: String,
    service_account: String,
    pod: Option<(String, String)>,
    audience: String,
    seconds: i64,
}

impl TokenSpec {
    /// For a service account.
    pub fn new(namespace: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: None,
            audience: "podlight".to_owned(),
            seconds: 3600,
        }
    }

    /// What a projected volume gives `pod`: for its service account and bound to it.
    ///
    /// # Panics
    /// When the pod is not one that the API server returned, with a name, a uid and a service account.
    pub fn for_pod(pod: &Pod) -> Self {
        let name = pod.metadata.name.as_deref().expect("a pod from the API server has a name");
        let namespace = pod.metadata.namespace.as_deref().expect("a pod from the API server has a namespace");
        let spec = pod.spec.as_ref().expect("a pod from the API server has a spec");
        let account = spec.service_account_name.as_deref().expect("the pod names a service account");
        Self::new(namespace, account).pod(name, &uid(pod))
    }

    /// Binds it to the pod.
    pub fn pod(mut self, name: &str, uid: &str) -> Self {
        self.pod = Some((name.to_owned(), uid.to_owned()));
        self
    }

    /// Its only audience.
    pub fn audience(mut self, audience: &str) -> Self {
        self.audience = audience.to_owned();
        self
    }

    /// How long it lives; the API server grants no less than 600 s. For others see [`ControlPlane::reissue`].
    pub fn seconds(mut self, seconds: i64) -> Self {
        self.seconds = seconds;
        self
    }

    fn request(&self) -> TokenRequest {
        let bound_object_ref = self.pod.as_ref().map(|(name, uid)| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
        });
        let spec = TokenRequestSpec {
            audiences: Some(vec![self.audience.clone()]),
            bound_object_ref,
            expiration_seconds: Some(self.seconds),
        };
        TokenRequest { spec: Some(spec), ..Default::default() }
    }

    async fn mint(&self, client: Client) -> Result<String> {
        let accounts = Api::<ServiceAccount>::namespaced(client, &self.namespace);
        let TokenRequest { status, .. } = accounts
            .create_token_request(&self.service_account, &PostParams::default(), &self.request())
            .await
            .with_context(|| format!("no token for {}/{}", self.namespace, self.service_account))?;
        status.and_then(|status| status.token).context("the API server granted no token")
    }
}

impl ControlPlane {
    /// Asks for one token.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn token(&self, spec: &TokenSpec) -> Result<String> {
        spec.mint(self.client()?).await
    }

    /// Asks for many tokens, 16 at a time, and returns them in order. Each costs the API server about 2 ms of CPU.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub async fn tokens(&self, specs: &[TokenSpec]) -> Result<Vec<String>> {
        let client = self.client()?;
        stream::iter(specs).map(|spec| spec.mint(client.clone())).buffered(IN_FLIGHT).try_collect().await
    }

    /// `token` with its claims altered and signed anew with the cluster's own key: what the API server would have issued at
    /// another time or to somebody else. Its header stays.
    ///
    /// # Errors
    /// When `token` is no JWS of JSON claims.
    pub fn reissue(&self, token: &str, alter: impl FnOnce(&mut Value)) -> Result<String> {
        let mut parts = token.split('.');
        let (header, claims) = parts.next().zip(parts.next()).context("not a JWS")?;
        let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims)?)?;
        alter(&mut claims);
        let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = lock(&self.pki).sign(&signed)?;
        Ok(format!("{signed}.{signature}"))
    }
}
