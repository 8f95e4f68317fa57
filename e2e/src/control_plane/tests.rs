use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::{ControlPlane, Options, PodSpec, PodState, ServiceSpec, SliceSpec, TokenSpec, http_probe, uid};
use crate::control_plane::ContainerSpec;

async fn create_web(control_plane: &ControlPlane) -> Result<Pod> {
    control_plane.create_namespace("shop").await?;
    control_plane.create_service_account("shop", "web").await?;
    control_plane.create_node("node-1").await?;
    let app = ContainerSpec::new("app").port("http", 8080).readiness(http_probe("/ready", 8080));
    let spec = PodSpec::new("shop", "web-1")
        .label("app", "web")
        .service_account("web")
        .readiness_gate("example.com/checked")
        .container(app);
    let state = PodState::new().phase("Running").address("127.0.0.2").ready(false, Timestamp::now());
    control_plane.create_pod(spec, Some(state)).await
}

async fn review(client: Client, token: &str, audience: &str) -> Result<TokenReviewStatus> {
    let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![audience.to_owned()]) };
    let review = TokenReview { spec, ..Default::default() };
    let review = Api::<TokenReview>::all(client).create(&PostParams::default(), &review).await?;
    review.status.context("a review without status")
}

/// Whether a watch from `version` is told that it is too old.
async fn is_expired(client: Client, version: &str) -> Result<bool> {
    let pods = Api::<Pod>::namespaced(client, "shop");
    let events = match pods.watch(&WatchParams::default(), version).await {
        Err(kube::Error::Api(status)) if status.code == 410 => return Ok(true),
        events => events?,
    };
    pin_mut!(events);
    match tokio::time::timeout(Duration::from_secs(5), events.next()).await {
        Ok(Some(Ok(WatchEvent::Error(status)))) => Ok(status.code == 410),
        Ok(Some(Err(kube::Error::Api(status)))) => Ok(status.code == 410),
        Ok(Some(event)) => event.map(|_| false).map_err(Into::into),
        Ok(None) | Err(_) => Ok(false),
    }
}

#[tokio::test]
async fn bound_token_is_reviewed_and_counted() -> Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let pod = create_web(&control_plane).await?;
    control_plane.create_activator_account("default", "activator").await?;
    control_plane.create_activator_account("default", "activator").await?;
    control_plane.allow_url("default", "activator", "/v1/*").await?;

    let kubeconfig = kube::config::Kubeconfig::read_from(control_plane.kubeconfig_for("default", "activator").await?)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    let activator = Client::try_from(config)?;
    let spec = TokenSpec::for_pod(&pod).seconds(600);
    let token = control_plane.token(&spec).await?;

    let status = review(activator.clone(), &token, "podlight").await?;
    assert_eq!(status.authenticated, Some(true));
    assert_eq!(status.audiences, Some(vec!["podlight".to_owned()]));
    let user = status.user.context("no user")?;
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:shop:web"));
    let extra = user.extra.context("no extra")?;
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [uid(&pod)]);
    assert!(extra.contains_key("authentication.kubernetes.io/node-uid"), "{extra:?}");
    assert_eq!(control_plane.token_reviews()?, 1);
    assert_eq!(review(activator.clone(), "garbage", "podlight").await?.authenticated, None);
    assert_eq!(control_plane.token_reviews()?, 2);
    assert_eq!(control_plane.subject_access_reviews()?, 0);

    assert_eq!(control_plane.jwks_requests()?, 0);
    let jwks = activator.request_text(http::Request::get("/openid/v1/jwks").body(Vec::new())?).await?;
    assert!(jwks.contains("RS256"), "{jwks}");
    assert_eq!(control_plane.jwks_requests()?, 1);
    assert!(Api::<Pod>::namespaced(activator.clone(), "shop").get("web-1").await.is_ok());
    assert_eq!(control_plane.requests("get", "pods")?, 1);
    let refused = Api::<Pod>::namespaced(activator.clone(), "shop").delete("web-1", &Default::default()).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.is_forbidden()));

    let same = control_plane.reissue(&token, |_| ())?;
    assert_eq!(review(activator.clone(), &same, "podlight").await?.authenticated, Some(true));
    let expired = control_plane.reissue(&token, |claims| claims["exp"] = json!(1_700_000_000))?;
    assert_eq!(review(activator, &expired, "podlight").await?.authenticated, None);
    Ok(())
}

#[tokio::test]
async fn objects_are_accepted_and_change() -> Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let pod = create_web(&control_plane).await?;
    let status = pod.status.clone().context("no status")?;
    assert_eq!(status.pod_ip.as_deref(), Some("127.0.0.2"));
    let state = PodState::new().address("127.0.0.3").address("fd00::3").ready(true, Timestamp::now()).condition(
        "example.com/checked",
        true,
        Timestamp::now(),
    );
    let status = control_plane.set_pod_state("shop", "web-1", &state).await?.status.context("no status")?;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ips.map(|addresses| addresses.len()), Some(2));
    assert_eq!(status.conditions.map(|conditions| conditions.len()), Some(2));
    let pod = control_plane.set_pod_label("shop", "web-1", "app", None).await?;
    assert!(pod.labels().is_empty());

    control_plane
        .create_service(ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, "http").headless())
        .await?;
    control_plane.create_service(ServiceSpec::new("shop", "bare").port("http", 80, "8080")).await?;
    let slice = SliceSpec::new("shop", "bare-1", "bare").port("http", 8080);
    control_plane.create_endpoint_slice(slice.endpoint("192.0.2.7", true, true, false)).await?;
    let slice = SliceSpec::new("shop", "bare-2", "bare").port("http", 8080);
    assert!(control_plane.create_endpoint_slice(slice.endpoint("127.0.0.7", true, true, false)).await.is_err());

    control_plane.delete_pod("shop", "web-1", 30).await?;
    let pods = Api::<Pod>::namespaced(control_plane.client()?, "shop");
    assert!(pods.get("web-1").await?.metadata.deletion_timestamp.is_some());
    control_plane.delete_pod("shop", "web-1", 0).await?;
    assert!(pods.get_opt("web-1").await?.is_none());

    let specs = (0..100).map(|n| (PodSpec::new("shop", &format!("web-{n}")).service_account("web"), None)).collect();
    let pods = control_plane.create_pods(specs).await?;
    let specs: Vec<TokenSpec> = pods.iter().map(TokenSpec::for_pod).collect();
    let tokens = control_plane.tokens(&specs).await?;
    assert_eq!(tokens.len(), 100);
    Ok(())
}

#[tokio::test]
async fn restarted_api_server_keeps_data_and_takes_a_new_key() -> Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let pod = create_web(&control_plane).await?;
    let token = control_plane.token(&TokenSpec::for_pod(&pod)).await?;
    let pods = Api::<Pod>::namespaced(control_plane.client()?, "shop");

    control_plane.stop_api_server();
    assert!(pods.get("web-1").await.is_err());
    control_plane.rotate_token_key()?;
    control_plane.start_api_server().await?;
    assert_eq!(uid(&pods.get("web-1").await?), uid(&pod));
    let newer = control_plane.token(&TokenSpec::for_pod(&pod)).await?;
    let header = |token: &str| token.split('.').next().map(str::to_owned);
    assert_ne!(header(&token), header(&newer), "the kid changes with the key");
    for token in [token, newer] {
        assert_eq!(review(control_plane.client()?, &token, "podlight").await?.authenticated, Some(true));
    }

    control_plane.pause_api_server()?;
    let hangs = tokio::time::timeout(Duration::from_millis(300), pods.get("web-1")).await;
    assert!(hangs.is_err());
    control_plane.resume_api_server()?;
    assert!(pods.get("web-1").await.is_ok());
    Ok(())
}

#[tokio::test]
async fn compaction_expires_old_watches() -> Result<()> {
    let control_plane = ControlPlane::start(Options { watch_cache: false, ..Options::default() }).await?;
    let pod = create_web(&control_plane).await?;
    let version = pod.resource_version().context("no version")?;
    control_plane.set_pod_label("shop", "web-1", "app", Some("other")).await?;
    assert!(!is_expired(control_plane.client()?, &version).await?);
    control_plane.compact_etcd().await?;
    assert!(is_expired(control_plane.client()?, &version).await?);
    Ok(())
}

#[tokio::test]
async fn expired_watches_are_so_with_the_watch_cache_too() -> Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let version = create_web(&control_plane).await?.resource_version().context("no version")?;
    control_plane.expire_watches().await?;
    assert!(is_expired(control_plane.client()?, &version).await?);
    Ok(())
}

#[tokio::test]
async fn dropping_ends_the_servers_and_removes_the_folder() -> Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let folder = control_plane.folder().to_owned();
    assert!(control_plane.is_running());
    let api_server = super::lock(&control_plane.api_server).as_ref().map(super::Process::id).context("stopped")?;
    let servers = [api_server, control_plane.etcd.id()].map(|id| format!("/proc/{id}"));
    assert!(servers.iter().all(|server| Path::new(server).exists()));
    drop(control_plane);
    assert!(!servers.iter().any(|server| Path::new(server).exists()));
    assert!(!folder.exists());
    Ok(())
}

#[tokio::test]
async fn servers_outlive_the_thread_and_the_runtime_that_started_them() -> Result<()> {
    let start = || -> Result<ControlPlane> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(ControlPlane::start(Options::default()))
    };
    let control_plane = std::thread::spawn(start).join().expect("it does not panic")?;
    create_web(&control_plane).await?;
    assert!(control_plane.is_running());
    Ok(())
}

#[tokio::test]
async fn a_server_that_refuses_to_start_says_why() -> Result<()> {
    let api_server_flags = vec!["--no-such-flag".to_owned()];
    let started = ControlPlane::start(Options { api_server_flags, ..Options::default() }).await;
    let error = started.err().context("it starts")?;
    assert!(format!("{error:#}").contains("unknown flag: --no-such-flag"), "{error:#}");
    Ok(())
}
