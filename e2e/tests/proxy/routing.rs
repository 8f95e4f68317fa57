//! From a `Host` to a Service, on a real API server: by name, by annotation, and never to anything else.

use std::time::Duration;

use anyhow::{Result, ensure};
use podlight_e2e::control_plane::ServiceSpec;
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{Connection, ask, get};
use podlight_e2e::proxy::stage::{ROUTE, Stage};

use crate::{scene, told};

const HOSTS: &str = "podlight.dev/hosts";

#[tokio::test]
async fn a_service_is_found_by_its_name_in_every_form_that_dns_has_for_it() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    let (proxy, base) = (stage.proxy()?, stage.host("web"));
    stage.until(&base, |answer| answer.status == 200).await?;
    for host in [
        base.clone(),
        format!("{base}.svc"),
        format!("{base}.svc.cluster.local"),
        format!("{base}:80"),
        format!("{base}.svc:8080"),
        format!("{base}.svc.cluster.local."),
        format!("{base}."),
        base.to_uppercase(),
        format!("{}.svc.Cluster.Local:8443", base.to_uppercase()),
    ] {
        let answer = ask(proxy, get(&host, "/a?b=c")).await?;
        let seen = answer.seen()?;
        assert_eq!((seen.pod.as_str(), seen.target.as_str()), ("web-1", "/a?b=c"), "{host}");
        assert_eq!(seen.authority, host, "the pod sees the host as it was sent");
    }
    Ok(())
}

#[tokio::test]
async fn the_cluster_domain_is_the_configured_one() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec.flag("cluster-domain", "example.internal")).await?;
    stage.create_service(stage.service("web")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    let (proxy, base) = (stage.proxy()?, stage.host("web"));
    stage.until(&base, |answer| answer.status == 200).await?;
    ask(proxy, get(&format!("{base}.svc.example.internal"), "/")).await?.seen()?;
    ask(proxy, get(&format!("{base}.svc.cluster.local"), "/")).await?.refused(404)?;
    Ok(())
}

#[tokio::test]
async fn a_service_is_found_by_the_hosts_of_its_annotation_exact_before_the_longest_suffix() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let unique = format!("{}.example.com", stage.namespace);
    let (wide, narrow) = (format!("*.{unique}"), format!("*.eu.{unique}"));
    for (name, hosts) in [("wide", wide), ("narrow", narrow), ("exact", format!("www.eu.{unique}, other.{unique}"))] {
        stage.create_service(stage.service(name).annotation(HOSTS, &hosts)).await?;
    }
    let mut webs = Vec::new();
    for name in ["wide", "narrow", "exact"] {
        webs.push(stage.ready_web(name, &format!("{name}-1")).await?);
        stage.until(&stage.host(name), |answer| answer.status == 200).await?;
    }
    for (host, pod) in [
        (format!("a.{unique}"), "wide-1"),
        (format!("a.b.{unique}"), "wide-1"),
        (format!("a.eu.{unique}"), "narrow-1"),
        (format!("a.b.eu.{unique}"), "narrow-1"),
        (format!("www.eu.{unique}"), "exact-1"),
        (format!("WWW.EU.{unique}.:443"), "exact-1"),
        (format!("other.{unique}"), "exact-1"),
    ] {
        assert_eq!(ask(stage.proxy()?, get(&host, "/")).await?.pod()?, pod, "{host}");
    }
    // A suffix is not the name itself, and no part of a label.
    for host in [unique.clone(), format!("x{unique}")] {
        ask(stage.proxy()?, get(&host, "/")).await?.refused(404)?;
    }
    Ok(())
}

#[tokio::test]
async fn the_authority_of_http2_routes_as_a_host_does() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let host = format!("{}.example.org", stage.namespace);
    stage.create_service(stage.service("web").annotation(HOSTS, &host)).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&host, |answer| answer.status == 200).await?;
    let mut connection = Connection::http2(stage.proxy()?).await?;
    for host in [host.to_uppercase(), format!("{host}:80"), stage.host("web")] {
        assert_eq!(connection.ask(get(&host, "/")).await?.pod()?, "web-1", "{host}");
    }
    // One connection, any target: each request is routed by itself.
    connection.ask(get("nobody.example.org", "/")).await?.refused(404)?;
    assert_eq!(connection.ask(get(&host, "/")).await?.pod()?, "web-1");
    Ok(())
}

#[tokio::test]
async fn of_two_services_that_claim_a_host_the_older_keeps_it_and_the_other_is_reported() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let host = format!("{}.example.net", stage.namespace);
    stage.create_service(stage.service("zebra").annotation(HOSTS, &host)).await?;
    // Ages are whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    stage.create_service(stage.service("ant").annotation(HOSTS, &host)).await?;
    let (_zebra, _ant) = (stage.ready_web("zebra", "zebra-1").await?, stage.ready_web("ant", "ant-1").await?);
    stage.until(&stage.host("ant"), |answer| answer.status == 200).await?;
    stage.until(&host, |answer| answer.status == 200).await?;
    assert_eq!(ask(stage.proxy()?, get(&host, "/")).await?.pod()?, "zebra-1");
    let conflict = format!("{host} belongs to {}/zebra", stage.namespace);
    let page = stage.activator().admin("/status").await?;
    ensure!(page.body.contains(&conflict), "not reported: {}", page.body);
    eventually("an Event tells the owner of the younger", async || {
        let events = told(&stage, "ant", "HostConflict").await?;
        ensure!(events.iter().any(|event| event.contains(&conflict)), "{events:?}");
        Ok(Some(()))
    })
    .await?;
    assert_eq!(told(&stage, "zebra", "HostConflict").await?, [""; 0], "the older has it");
    // Once it is free, it is the other's.
    stage.annotate("zebra", HOSTS, None).await?;
    stage.until(&host, |answer| answer.pod().is_ok_and(|pod| pod == "ant-1")).await?;
    Ok(())
}

#[tokio::test]
async fn an_unknown_host_is_404_with_its_name_and_never_somebody_elses() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let before = web.app.requests();
    let namespace = &stage.namespace;
    for host in [
        "nobody.example.com".to_owned(),
        format!("other.{namespace}"),
        "web.nowhere".to_owned(),
        "web".to_owned(),
        format!("a.web.{namespace}"),
        format!("web.{namespace}.pod"),
        web.pod.address.to_string(),
        "[::1]:80".to_owned(),
    ] {
        let answer = ask(stage.proxy()?, get(&host, "/")).await?;
        let text = answer.refused(404)?.text();
        let name = host.trim_start_matches('[').split(']').next().unwrap_or_default();
        ensure!(text.contains(name), "{host}: {text}");
    }
    assert_eq!(web.app.requests(), before);
    Ok(())
}

#[tokio::test]
async fn a_service_without_the_route_annotation_takes_no_requests_and_opts_in_and_out_live() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let closed = ServiceSpec::new(&stage.namespace, "web").selector("app", "web").port("http", 80, "http");
    stage.create_service(closed).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.wait("web", "web-1", "ready pushed").await?;
    stage.get("web", "/").await?.refused(404)?;
    stage.annotate("web", ROUTE, Some("always")).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    stage.annotate("web", ROUTE, None).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 404).await?;
    Ok(())
}

#[tokio::test]
async fn hosts_come_and_go_with_their_annotation() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let host = format!("{}.example.com", stage.namespace);
    stage.create_service(stage.service("web")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    stage.until(&host, |answer| answer.status == 404).await?;
    stage.annotate("web", HOSTS, Some(&host)).await?;
    stage.until(&host, |answer| answer.status == 200).await?;
    stage.annotate("web", HOSTS, None).await?;
    stage.until(&host, |answer| answer.status == 404).await?;
    Ok(())
}

#[tokio::test]
async fn services_of_one_name_in_two_namespaces_are_two_targets() -> Result<()> {
    let (one, two) = (Stage::on(scene().await, |spec| spec).await?, Stage::on(scene().await, |spec| spec).await?);
    let mut webs = Vec::new();
    for stage in [&one, &two] {
        stage.create_service(stage.service("web")).await?;
        webs.push(stage.ready_web("web", &format!("web-of-{}", stage.namespace)).await?);
        stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    }
    assert_eq!(one.get("web", "/").await?.pod()?, format!("web-of-{}", one.namespace));
    assert_eq!(two.get("web", "/").await?.pod()?, format!("web-of-{}", two.namespace));
    Ok(())
}

#[tokio::test]
async fn an_external_name_is_refused_with_a_clear_error() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let spec = stage.open_service("outside").with(|spec| {
        spec.type_ = Some("ExternalName".to_owned());
        spec.external_name = Some("example.com".to_owned());
    });
    stage.create_service(spec).await?;
    let answer = stage.until(&stage.host("outside"), |answer| answer.text().contains("ExternalName")).await?;
    ensure!(answer.status >= 400 && !answer.error().is_empty(), "{answer:?}");
    Ok(())
}
