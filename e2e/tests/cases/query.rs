//! Who may read the table, and what a reader is told.

use anyhow::{Context, Result};
use podlight_e2e::api::{Reader, Target, WatchEvent};
use podlight_e2e::control_plane::{ServiceSpec, TokenSpec, uid};
use podlight_e2e::eventually::eventually;
use podlight_proto::{ErrorCode, Kind};
use serde_json::json;

use crate::scene;

#[tokio::test]
async fn a_reader_needs_a_token_and_the_right() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    let one = format!("/v1/targets/{}/web", shop.namespace);
    let wrong_audience = TokenSpec::for_pod(&web.pod).audience("other");
    let wrong_audience = Reader::new(&base, &scene.control_plane.token(&wrong_audience).await?)?;
    for path in ["/v1/targets", "/v1/watch", &one] {
        for nobody in [&Reader::anonymous(&base)?, &Reader::new(&base, "opaque")?, &wrong_audience] {
            nobody.get(path).await?.refused(401, ErrorCode::AuthenticationFailed).context(path.to_owned())?;
        }
        // A pod may speak for itself and not read about others.
        let pod = Reader::new(&base, &web.token)?;
        pod.get(path).await?.refused(403, ErrorCode::AccessDenied).context(path.to_owned())?;
    }
    let reader = scene.reader_of(&scene.activators[0])?;
    assert!(reader.targets().await?.iter().any(|target| target.namespace == shop.namespace));
    reader.get(&format!("/v1/targets/{}/nothing", shop.namespace)).await?.refused(404, ErrorCode::NotFound)?;
    reader.get("/v1/other").await?.refused(404, ErrorCode::NotFound)?;
    Ok(())
}

#[tokio::test]
async fn a_right_to_one_path_is_one_to_that_path() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let path = format!("/v1/targets/{}/web", shop.namespace);
    scene.control_plane.create_service_account(&shop.namespace, "router").await?;
    scene.control_plane.allow_url(&shop.namespace, "router", &path).await?;
    // Readers need not be pods.
    let token = scene.control_plane.token(&TokenSpec::new(&shop.namespace, "router")).await?;
    let reader = Reader::new(&scene.activators[0].url(), &token)?;
    eventually("the right is known", async || Ok((reader.get(&path).await?.status == 200).then_some(()))).await?;
    reader.get("/v1/targets").await?.refused(403, ErrorCode::AccessDenied)?;
    Ok(())
}

#[tokio::test]
async fn all_targets_are_told_with_endpoints_that_are_not_ready_and_without_any() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let idle = ServiceSpec::new(&shop.namespace, "idle").selector("app", "idle").port("http", 80, "http");
    scene.control_plane.create_service(idle).await?;
    let web = shop.web("web-1").await?;
    shop.wait(0, "web-1", "not-ready observed").await?;
    let reader = scene.reader_of(&scene.activators[0])?;
    let targets = eventually("both targets are there", async || {
        let ours = |target: &Target| target.namespace == shop.namespace;
        let targets: Vec<Target> = reader.targets().await?.into_iter().filter(ours).collect();
        Ok((targets.len() == 2).then_some(targets))
    })
    .await?;
    assert_eq!(targets.iter().map(|target| target.service.as_str()).collect::<Vec<_>>(), ["idle", "web"]);
    assert!(targets[0].endpoints.is_empty());
    assert_eq!(targets[1].endpoints.len(), 1);
    assert_eq!(targets[1].endpoints[0].pod.as_ref().context("no pod")?.uid, uid(&web.pod));
    Ok(())
}

#[tokio::test]
async fn a_watch_tells_the_full_state_then_changes_and_goes_on_where_it_left_off() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    shop.wait(0, "web-1", "not-ready pushed").await?;
    let (namespace, uid) = (shop.namespace.clone(), uid(&web.pod));
    let is_ours = |event: &WatchEvent, state: &str| {
        let told = &event.data;
        event.kind == "endpoint"
            && told["namespace"] == json!(namespace)
            && told["endpoint"]["pod"]["uid"] == json!(uid)
            && told["endpoint"]["state"] == json!(state)
    };

    let reader = scene.reader_of(&scene.activators[0])?;
    let mut watch = reader.watch(None).await?;
    let state = watch.find(|event| event.data["namespace"] == json!(namespace)).await?;
    assert_eq!((state.kind.as_str(), &state.data["service"]), ("state", &json!("web")));
    assert_eq!(state.data["endpoints"][0]["state"], json!("not-ready"));
    let synced = watch.find(|event| event.kind == "synced").await?;
    assert_eq!((&synced.data["resumed"], &synced.data["replica"]), (&json!(false), &json!("replica-0")));
    web.sender.tell(&base, Kind::Ready).await?;
    let ready = watch.find(|event| is_ours(event, "ready")).await?;
    assert_eq!(ready.data["endpoint"]["source"], json!("pushed"));
    drop(watch);

    // What happened meanwhile is told, and the state is not told again.
    web.sender.tell(&base, Kind::NotReady).await?;
    let mut watch = reader.watch(Some(ready.id.as_deref().context("no id")?)).await?;
    let synced = watch.next().await?.context("the watch ended")?;
    assert_eq!((synced.kind.as_str(), &synced.data["resumed"]), ("synced", &json!(true)));
    watch.find(|event| is_ours(event, "not-ready")).await?;
    shop.delete("web-1", 0).await?;
    let gone = watch.find(|event| event.kind == "endpoint-gone" && event.data["namespace"] == json!(namespace)).await?;
    assert_eq!(gone.data["id"], json!(uid));

    // Another replica's position means nothing here: all is told again.
    let mut elsewhere = scene.reader_of(&scene.activators[1])?.watch(ready.id.as_deref()).await?;
    let synced = elsewhere.find(|event| event.kind == "synced").await?;
    assert_eq!(synced.data["resumed"], json!(false));
    Ok(())
}

#[tokio::test]
async fn the_status_command_prints_the_same_as_a_table() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    web.sender.tell(&base, Kind::Ready).await?;
    let (status, said) = scene.activators[0].run_status(scene.reader_token(), &shop.namespace).await?;
    assert_eq!(status.code(), Some(0), "{said}");
    for word in ["web-1", "ready", "pushed", "r1", &uid(&web.pod)] {
        assert!(said.contains(word), "{word:?} is missing:\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_status_command_goes_on_with_a_line_for_each_change() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    let status = scene.activators[0].watch_status(scene.reader_token(), &shop.namespace)?;
    let shows = async |state: &str| {
        eventually(&format!("a line says {state}"), async || {
            let said = status.log_tail();
            let state = format!(" {state} ");
            Ok(said.lines().any(|line| line.contains("web-1") && line.contains(&state)).then_some(()))
        })
        .await
    };
    shows("not-ready").await?;
    for (kind, state) in [(Kind::Ready, "ready"), (Kind::Draining, "draining")] {
        web.sender.tell(&base, kind).await?;
        shows(state).await?;
    }
    Ok(())
}
