//! A pod of a stage, as its sidecar speaks for it.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use podlight_proto::Kind;

use crate::backend::PORT;
use crate::eventually::eventually;
use crate::sender::Sender;
use crate::sidecar::SidecarSpec;

/// A pod and its sidecar's voice, towards the replicas that there were when it came.
pub struct StagePod {
    /// Its name.
    pub name: String,
    /// Its first address.
    pub address: IpAddr,
    /// As the cluster has it.
    pub pod: Pod,
    /// Bound to it.
    pub token: String,
    pub(super) sender: Sender,
    pub(super) replicas: Vec<String>,
}

impl StagePod {
    /// Its sidecar says that it is ready, to every replica; it has introduced itself before.
    ///
    /// # Errors
    /// When a replica does not take it.
    pub async fn ready(&self) -> Result<()> {
        self.introduce().await?;
        self.say(Kind::Ready).await
    }

    /// Its sidecar introduces itself: it has a voice, and is not ready.
    ///
    /// # Errors
    /// When a replica does not take it in time.
    pub async fn introduce(&self) -> Result<()> {
        for replica in &self.replicas {
            // Manifests are read a few times a second.
            eventually("the pod is known", async || self.sender.introduce(replica, &self.token).await.map(Some))
                .await?;
        }
        Ok(())
    }

    /// Its sidecar says this to every replica, which knows it.
    ///
    /// # Errors
    /// When a replica does not take it.
    pub async fn say(&self, kind: Kind) -> Result<()> {
        for replica in &self.replicas {
            self.sender.tell(replica, kind).await?;
        }
        Ok(())
    }

    /// Its sidecar's voice, for what it should not say.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// How a real sidecar of this pod would run.
    pub fn sidecar(&self) -> SidecarSpec {
        let spec = SidecarSpec::new(&self.pod, &self.token);
        self.replicas.iter().fold(spec, |spec, replica| spec.activator(replica))
    }

    /// Where its app listens.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, PORT)
    }
}
