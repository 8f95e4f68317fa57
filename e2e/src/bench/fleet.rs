//! A real control plane with many pods, and what their sidecars would know and say. Pod number n has an address of its own
//! in 127.0.0.0/8, so that its sidecar can also be heard from there.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use podlight_proto::{Boot, Event, Kind, Order, PodRef, Port, Sequence, SigningKey};

use crate::control_plane::{
    ContainerSpec, ControlPlane, Options, PodSpec, PodState, ServiceSpec, TokenSpec, http_probe, uid,
};
use crate::sender::now_ms;

const NAMESPACE: &str = "bench";
const ACCOUNT: &str = "app";
const PODS_PER_SERVICE: usize = 100;

/// One pod as its sidecar knows it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Namespace, name and uid.
    pub pod: PodRef,
    /// Its only address.
    pub address: IpAddr,
    /// A token of its ServiceAccount, bound to it, by the API server.
    pub token: String,
}

/// The control plane and its pods.
pub struct Fleet {
    /// The servers.
    pub control_plane: ControlPlane,
    /// The pods, all running and none ready.
    pub members: Vec<Member>,
    /// A kubeconfig file with the rights of an activator.
    pub kubeconfig: PathBuf,
}

impl Fleet {
    /// Starts etcd and kube-apiserver, creates `size` pods and asks for a token for each.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start(size: usize) -> Result<Self> {
        let begun = Instant::now();
        let control_plane = ControlPlane::start(Options::default()).await?;
        control_plane.create_namespace(NAMESPACE).await?;
        control_plane.create_service_account(NAMESPACE, ACCOUNT).await?;
        control_plane.create_node("node-1").await?;
        control_plane.create_activator_account("default", "activator").await?;
        let kubeconfig = control_plane.kubeconfig_for("default", "activator").await?;
        for service in 0..size.div_ceil(PODS_PER_SERVICE) {
            let app = app(service);
            let spec = ServiceSpec::new(NAMESPACE, &app).selector("app", &app).port("http", 80, "http").headless();
            control_plane.create_service(spec).await?;
        }
        let pods = control_plane.create_pods((0..size).map(pod).collect()).await.context("cannot create the pods")?;
        let specs: Vec<TokenSpec> = pods.iter().map(TokenSpec::for_pod).collect();
        let tokens = control_plane.tokens(&specs).await.context("cannot mint the tokens")?;
        let members: Result<_> =
            pods.iter().zip(tokens).enumerate().map(|(n, (pod, token))| member(n, pod, token)).collect();
        super::progress(&format!("{size} pods and their tokens on a real API server: {:.0?}", begun.elapsed()));
        Ok(Self { control_plane, members: members?, kubeconfig })
    }
}

fn app(service: usize) -> String {
    format!("app-{service}")
}

fn pod(n: usize) -> (PodSpec, Option<PodState>) {
    let container = ContainerSpec::new("app").port("http", 8080).readiness(http_probe("/ready", 8080));
    let spec = PodSpec::new(NAMESPACE, &format!("pod-{n}")).service_account(ACCOUNT).container(container);
    let spec = spec.label("app", &app(n / PODS_PER_SERVICE)).label("podlight.dev/revision", "v1");
    let since = Timestamp::now() - Duration::from_secs(60);
    (spec, Some(PodState::new().phase("Running").address(&address(n).to_string()).ready(false, since)))
}

fn member(n: usize, pod: &Pod, token: String) -> Result<Member> {
    let name = pod.metadata.name.as_deref().context("a pod without a name")?;
    Ok(Member { pod: PodRef::new(NAMESPACE, name, &uid(pod))?, address: address(n), token })
}

/// 127.1.0.0 and on.
fn address(n: usize) -> IpAddr {
    let offset = u32::try_from(n).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + offset).into()
}

/// One start of a member's sidecar: a key, a boot and a sequence.
pub struct Voice<'a> {
    /// Whose.
    pub member: &'a Member,
    key: SigningKey,
    boot: Boot,
    seq: Sequence,
}

impl<'a> Voice<'a> {
    /// A new key, and the boot of now.
    ///
    /// # Errors
    /// When the clock stands before 1970.
    pub fn start(member: &'a Member) -> Result<Self> {
        let boot = Boot::try_from(now_ms())?;
        Ok(Self { member, key: SigningKey::generate(), boot, seq: Sequence::FIRST })
    }

    /// The next statement, signed as of now: with the token or without.
    pub fn say(&mut self, kind: Kind, ready: bool, with_token: bool) -> String {
        let event = Event {
            pod: self.member.pod.clone(),
            order: Order { boot: self.boot, seq: self.seq },
            kind,
            revision: "v1".to_owned(),
            addresses: vec![self.member.address],
            ports: vec![Port { name: "http".to_owned(), port: 8080 }],
            ready,
            observed_at_ms: now_ms(),
        };
        self.seq = self.seq.next();
        self.key.sign(&event, now_ms() / 1000, with_token.then_some(self.member.token.as_str()))
    }
}
