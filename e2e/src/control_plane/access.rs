//! Ways in: clients and kubeconfig files for the administrator and for service accounts.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use kube::{Client, Config};
use serde_json::json;
use tokio::runtime::Handle;

use super::{ControlPlane, ISSUER, TokenSpec, lock, pki};

impl ControlPlane {
    /// An administrator's client, one for each runtime that asks (a client does not outlive the runtime it was made on).
    ///
    /// # Errors
    /// When TLS cannot be set up.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn client(&self) -> Result<Client> {
        let runtime = Handle::current().id();
        let mut cached = lock(&self.client);
        if let Some((_, client)) = cached.as_ref().filter(|(made_on, _)| *made_on == runtime) {
            return Ok(client.clone());
        }
        let client = Client::try_from(self.config()?)?;
        *cached = Some((runtime, client.clone()));
        Ok(client)
    }

    /// An administrator's client configuration; calls are not retried.
    ///
    /// # Errors
    /// None in practice: the URL is well-formed.
    pub fn config(&self) -> Result<Config> {
        self.config_with(&self.admin_token)
    }

    /// A client configuration for the bearer of `token`; calls are not retried.
    ///
    /// # Errors
    /// As [`ControlPlane::config`].
    pub fn config_with(&self, token: &str) -> Result<Config> {
        let mut config = Config::new(self.url().parse()?);
        config.root_cert = Some(vec![lock(&self.pki).authority_der()]);
        config.auth_info.token = Some(token.to_owned().into());
        config.default_retry = false;
        Ok(config)
    }

    /// `https://127.0.0.1:<port>`, the same for the control plane's whole life.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_server_port)
    }

    /// The certificate authority of the API server.
    pub fn ca_pem(&self) -> String {
        lock(&self.pki).authority_pem()
    }

    /// A kubeconfig file for the administrator.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn admin_kubeconfig(&self) -> Result<PathBuf> {
        self.write_kubeconfig("admin", &self.admin_token)
    }

    /// A kubeconfig file for a service account, with a token that is good for a day.
    ///
    /// # Errors
    /// When there is no such account, or the file cannot be written.
    pub async fn kubeconfig_for(&self, namespace: &str, service_account: &str) -> Result<PathBuf> {
        let spec = TokenSpec::new(namespace, service_account).audience(ISSUER).seconds(86_400);
        let token = self.token(&spec).await?;
        self.write_kubeconfig(&format!("{namespace}.{service_account}"), &token)
    }

    fn write_kubeconfig(&self, user: &str, token: &str) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "e2e", "cluster": {
                "server": self.url(),
                "certificate-authority": self.folder.path().join(pki::AUTHORITY_FILE),
            }}],
            "users": [{ "name": user, "user": { "token": token } }],
            "contexts": [{ "name": "e2e", "context": { "cluster": "e2e", "user": user } }],
            "current-context": "e2e",
        });
        let path = self.folder.path().join(format!("{user}.kubeconfig"));
        fs::write(&path, config.to_string())?;
        Ok(path)
    }
}
