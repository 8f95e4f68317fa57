//! Straight to the pod, or by the ClusterIP: for each target, live, on a real API server whose ClusterIPs can be dialled.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{self, Connection, get};
use podlight_e2e::proxy::counts::{REQUESTS, wait_held};
use podlight_e2e::proxy::stage::{ROUTE, Stage, running_ready};
use podlight_proto::Kind;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{gateway, scene};

const CLUSTER_IP: &str = "cluster-ip";

/// Clients that ask while a mode is switched: half of them over HTTP/1.1, half over HTTP/2.
const CLIENTS: usize = 4;

/// Clients that ask one request after the other, each on a connection that it keeps.
struct Load {
    over: watch::Sender<bool>,
    clients: Vec<Client>,
}

struct Client {
    /// Who has answered it, in order, each once for any number of answers in a row; or what came instead, which ends it.
    answered: watch::Receiver<Vec<String>>,
    task: JoinHandle<Result<()>>,
}

impl Load {
    fn start(proxy: SocketAddr, host: &str) -> Self {
        let over = watch::Sender::new(false);
        let client = |n| {
            let (told, answered) = watch::channel(Vec::new());
            let task = tokio::spawn(ask_on(n, proxy, host.to_owned(), told, over.subscribe()));
            Client { answered, task }
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { over, clients }
    }

    /// Waits until each of them was last answered by this backend.
    async fn reaches(&self, pod: &str) -> Result<()> {
        eventually(&format!("{pod} answers all of them"), async || {
            for client in &self.clients {
                let answered = client.answered.borrow();
                ensure!(answered.last().is_some_and(|last| last == pod), "{:?}", *answered);
            }
            Ok(Some(()))
        })
        .await
    }

    /// Ends it, and tells who answered each.
    async fn end(self) -> Result<Vec<Vec<String>>> {
        self.over.send_replace(true);
        let mut all = Vec::new();
        for Client { answered, task } in self.clients {
            task.await??;
            all.push(answered.borrow().clone());
        }
        Ok(all)
    }
}

async fn ask_on(
    n: usize,
    proxy: SocketAddr,
    host: String,
    told: watch::Sender<Vec<String>>,
    over: watch::Receiver<bool>,
) -> Result<()> {
    let opened = if n < CLIENTS / 2 { Connection::http1(proxy).await } else { Connection::http2(proxy).await };
    let mut connection = opened?;
    while !*over.borrow() {
        let answered = connection.ask(get(&host, "/")).await.and_then(|answer| answer.pod());
        let lost = answered.is_err();
        let by = answered.unwrap_or_else(|error| format!("{error:#}"));
        told.send_if_modified(|all| {
            let another = all.last() != Some(&by);
            if another {
                all.push(by);
            }
            another
        });
        if lost {
            break;
        }
    }
    Ok(())
}

/// Waits until the Service `web` is in this mode.
async fn wait_mode(stage: &Stage<'_>, mode: &str) -> Result<()> {
    eventually(&format!("the mode is {mode}"), async || {
        let status: Value = serde_json::from_str(&stage.activator().admin("/status").await?.body)?;
        let targets = status["state"]["targets"].as_array().context("no targets")?;
        // Those of other tests are there too.
        let is_ours = |target: &&Value| target["namespace"] == stage.namespace.as_str() && target["service"] == "web";
        let ours = targets.iter().find(is_ours).context("no target")?;
        ensure!(ours["settings"]["mode"] == mode, "{}", ours["settings"]);
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn always_goes_straight_to_the_pod() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").annotation(ROUTE, "always")).await?;
    let gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.set_state("web-1", &running_ready(web.pod.address)).await?;
    for _ in 0..20 {
        stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "web-1")).await?;
    }
    assert_eq!(gateway.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn disabled_goes_by_the_cluster_ip_once_a_pod_is_ready_and_is_held_until_then() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").annotation(ROUTE, "disabled")).await?;
    let _gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    web.pod.say(Kind::Ready).await?;
    assert_eq!(held.await??.pod()?, CLUSTER_IP);
    assert_eq!(stage.get("web", "/").await?.pod()?, CLUSTER_IP);
    assert_eq!(web.app.requests(), 0);
    let metrics = stage.activator().metrics().await?;
    for (way, answers) in [(CLUSTER_IP, 2.0), ("direct", 0.0)] {
        assert_eq!(metrics.sum(REQUESTS, &[("outcome", "2xx"), ("way", way)]), answers, "{way}");
        assert_eq!(metrics.sum("podlight_proxy_response_seconds_count", &[("way", way)]), answers, "{way}");
    }
    Ok(())
}

#[tokio::test]
async fn cold_start_only_goes_to_the_pod_while_the_cluster_ip_may_lag_and_by_the_cluster_ip_then() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec.flag("cluster-ip-lag", "2s")).await?;
    stage.create_service(stage.service("web").annotation(ROUTE, "cold-start-only")).await?;
    let _gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.ready_web("web", "web-1").await?;
    // The API server has not said so yet: kube-proxy cannot know it.
    let host = stage.host("web");
    for _ in 0..5 {
        stage.until(&host, |answer| answer.pod().is_ok_and(|pod| pod == "web-1")).await?;
    }
    stage.set_state("web-1", &running_ready(web.pod.address)).await?;
    stage.until(&host, |answer| answer.pod().is_ok_and(|pod| pod == CLUSTER_IP)).await?;
    let asked = web.app.requests();
    for _ in 0..5 {
        assert_eq!(stage.get("web", "/").await?.pod()?, CLUSTER_IP);
    }
    assert_eq!(web.app.requests(), asked);
    Ok(())
}

#[tokio::test]
async fn the_mode_of_the_process_holds_where_a_target_has_none_of_its_own() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec.flag("route", "disabled")).await?;
    let mut kept = Vec::new();
    for (name, mode, expected) in [("own", "always", "own-1"), ("global", "default", CLUSTER_IP)] {
        stage.create_service(stage.service(name).annotation(ROUTE, mode)).await?;
        let gateway = gateway::listen(scene().await, &stage.namespace, name).await?;
        kept.push((gateway, stage.ready_web(name, &format!("{name}-1")).await?));
        stage.until(&stage.host(name), |answer| answer.pod().is_ok_and(|pod| pod == expected)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn switching_a_mode_is_live_and_loses_no_request() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec.flag("cluster-ip-lag", "1s")).await?;
    stage.create_service(stage.service("web").annotation(ROUTE, "always")).await?;
    let gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.set_state("web-1", &running_ready(web.pod.address)).await?;
    let (proxy, host) = (stage.proxy()?, stage.host("web"));
    stage.until(&host, |answer| answer.status == 200).await?;
    let load = Load::start(proxy, &host);
    load.reaches("web-1").await?;
    for (mode, before, after) in
        [("cold-start-only", &web.app, &gateway), ("disabled", &gateway, &gateway), ("always", &gateway, &web.app)]
    {
        before.open_gate(false);
        let under_way = client::start(proxy, get(&host, "/gate"));
        before.wait_at_gate(1).await?;
        stage.annotate("web", ROUTE, Some(mode)).await?;
        wait_mode(&stage, mode).await?;
        load.reaches(after.pod()).await?;
        // Whatever went the other way ends there.
        before.open_gate(true);
        assert_eq!(under_way.await??.pod()?, before.pod(), "{mode}");
    }
    for answered in load.end().await? {
        assert_eq!(answered, ["web-1", CLUSTER_IP, "web-1"], "each mode after the other, and nothing but answers");
    }
    Ok(())
}

#[tokio::test]
async fn without_a_push_and_a_ready_pod_the_cluster_ip_is_asked_and_held_for_when_it_refuses() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.web("web", "web-1").await?;
    stage.wait("web", "web-1", "not-ready observed").await?;
    // Nobody pushes, so kube-proxy may know better; it refuses, so the request is held.
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    let gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    // From now on it leads somewhere: for whoever waits as well as for whoever comes.
    assert_eq!(stage.get("web", "/new").await?.pod()?, CLUSTER_IP);
    assert_eq!(held.await??.pod()?, CLUSTER_IP);
    assert_eq!((gateway.requests(), web.app.requests()), (2, 0));
    Ok(())
}

#[tokio::test]
async fn where_a_push_says_not_ready_the_cluster_ip_is_not_asked() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    ensure!(gateway.connections() == 0, "the ClusterIP was dialled");
    held.abort();
    Ok(())
}
