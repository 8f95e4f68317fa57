use clap::Parser as _;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::mpsc;

use super::*;
use crate::config::{Args, TokenConfig};

const PATIENCE: Duration = Duration::from_secs(20);

const MANIFESTS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app, image: app}]}
status: {phase: Running, podIPs: [{ip: 127.0.0.1}]}
";

struct Running {
    folder: tempfile::TempDir,
    listen: SocketAddr,
    admin: SocketAddr,
    signals: mpsc::UnboundedSender<()>,
    task: JoinHandle<Result<(), RunError>>,
    client: reqwest::Client,
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("is bound")
}

fn start(more: &[&str]) -> Running {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a folder");
    let manifests = folder.path().join("cluster.yaml");
    std::fs::write(&manifests, MANIFESTS).expect("writes");
    let (listen, admin) = (free_address(), free_address());
    let (listen_text, admin_text) = (listen.to_string(), admin.to_string());
    let key = folder.path().join("key.pem");
    let args = [
        "podlight-activator",
        "--plaintext",
        "--replica",
        "a-0",
        "--listen",
        &listen_text,
        "--admin-listen",
        &admin_text,
        "--cluster-from",
        manifests.to_str().expect("text"),
        "--issuer-key",
        key.to_str().expect("text"),
    ];
    let args = Args::try_parse_from([&args[..], more].concat()).expect("parses");
    let config = Config::try_from(args.run).expect("valid");
    let (signals, mut received) = mpsc::unbounded_channel();
    let stream = futures::stream::poll_fn(move |cx| received.poll_recv(cx));
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let task = tokio::spawn(run(config, None, metrics, stream));
    let client = reqwest::Client::builder().no_proxy().build().expect("builds");
    Running { folder, listen, admin, signals, task, client }
}

impl Running {
    async fn wait_until_ready_is(&self, wanted: u16) {
        let url = format!("http://{}/readyz", self.admin);
        let reached = async {
            while self.client.get(&url).send().await.map(|answer| answer.status().as_u16()).ok() != Some(wanted) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("in time");
    }

    fn token(&self) -> String {
        let key = self.folder.path().join("key.pem");
        let args = [
            "podlight-activator",
            "token",
            "--issuer-key",
            key.to_str().expect("text"),
            "-n",
            "shop",
            "--pod",
            "web-0",
        ];
        let Some(crate::config::Command::Token(args)) = Args::try_parse_from(args).expect("parses").command else {
            panic!("another command");
        };
        let config = TokenConfig::try_from(args).expect("valid");
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        IssuerKey::load_or_create(&config.issuer_key).expect("a key").mint(&config.request, now).expect("mints")
    }

    async fn ended(self) -> Result<(), RunError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("ends in time").expect("does not panic")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_the_cluster_until_the_signal_comes() {
    let activator = start(&[]);
    activator.wait_until_ready_is(200).await;
    let base = format!("http://{}", activator.listen);
    let get = |path: &str| activator.client.get(format!("{base}{path}"));
    assert_eq!(get("/v1/targets").send().await.expect("an answer").status(), 401);
    let answer = get("/v1/targets/shop/web").bearer_auth(activator.token()).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let body = answer.text().await.expect("a body");
    assert!(body.contains(r#""name":"web-0""#) && body.contains(r#""replica":"a-0""#), "{body}");
    assert_eq!(get("/v1/events").send().await.expect("an answer").status(), 405);
    assert_eq!(get("/else").send().await.expect("an answer").status(), 404);

    // A reader that watches for ever does not keep the process.
    let watch = get("/v1/watch").bearer_auth(activator.token()).send().await.expect("an answer");
    assert_eq!(watch.status(), 200);
    activator.signals.send(()).expect("heard");
    activator.ended().await.expect("ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn is_not_ready_before_it_ends_and_a_second_signal_aborts() {
    let activator = start(&["--shutdown-delay", "1h"]);
    activator.wait_until_ready_is(200).await;
    activator.signals.send(()).expect("heard");
    activator.wait_until_ready_is(503).await;
    let url = format!("http://{}/v1/targets", activator.listen);
    assert_eq!(activator.client.get(url).send().await.expect("still served").status(), 401);
    activator.signals.send(()).expect("heard");
    assert!(matches!(activator.ended().await, Err(RunError::Aborted)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = taken.local_addr().expect("is bound").to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let args = [
        "podlight-activator",
        "--plaintext",
        "--replica",
        "a-0",
        "--listen",
        &address,
        "--admin-listen",
        "127.0.0.1:0",
        "--cluster-from",
        &path("cluster.yaml"),
        "--issuer-key",
        &path("key.pem"),
    ];
    let config = Config::try_from(Args::try_parse_from(args).expect("parses").run).expect("valid");
    let ended = run(config, None, PrometheusBuilder::new().build_recorder().handle(), futures::stream::pending()).await;
    assert!(matches!(ended, Err(RunError::Bind { .. })), "{ended:?}");
}

#[test]
fn bounds_of_connections_shrink_alike_until_there_are_descriptors_for_all() {
    let (mut events, mut clients, mut pods) = (1000, 2000, 1000);
    let mut bounds = [(1, &mut events), (2, &mut clients), (1, &mut pods)];
    assert_eq!(fit(&mut bounds, 6000), 6000);
    assert_eq!(fit(&mut bounds, 600), 6000);
    assert_eq!((events, clients, pods), (100, 200, 100));
    let mut most = usize::MAX;
    fit(&mut [(2, &mut most)], 1);
    assert_eq!(most, 1);
}
