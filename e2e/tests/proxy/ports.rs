//! Which port of a Service, and where that leads on each pod: cases 1 to 12 of the endpoint notes, on a real API server but for what
//! only slices can say.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use podlight_e2e::backend::Backend;
use podlight_e2e::control_plane::{ContainerSpec, SliceSpec, http_probe};
use podlight_e2e::proxy::client::{self, get};
use podlight_e2e::proxy::counts::wait_held;
use podlight_e2e::proxy::stage::{Stage, Web, nowhere, running, running_ready};

use crate::scene;

const PORT: &str = "podlight.dev/port";

/// An app at this port of a new address, and a pod of `service` there that declares `ports`; ready by the kubelet's word.
async fn pod(stage: &Stage<'_>, service: &str, name: &str, ports: &[(&str, u16)], app: u16) -> Result<(Web, Backend)> {
    let address = nowhere();
    let backend = Backend::at_port(name, SocketAddr::new(address, app));
    backend.listen()?;
    let container =
        ports.iter().fold(ContainerSpec::new("app"), |container, (name, number)| container.port(name, *number));
    let spec = stage.bare_pod_spec(service, name).container(container.readiness(http_probe("/ready", app)));
    let pod = stage.create_pod(spec, &running_ready(address)).await?;
    let placeholder = Backend::at(name, address);
    Ok((Web { pod, app: placeholder }, backend))
}

#[tokio::test]
async fn case_1_an_unnamed_single_port_is_found_without_being_named_and_by_its_number() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    for (name, port) in [("plain", None), ("numbered", Some("81"))] {
        let spec = stage.bare_service(name).port("", 81, "9001");
        stage.create_service(port.into_iter().fold(spec, |spec, port| spec.annotation(PORT, port))).await?;
        let _pod = pod(&stage, name, &format!("{name}-1"), &[], 9001).await?;
        stage.until(&stage.host(name), |answer| answer.status == 200).await?;
    }
    Ok(())
}

#[tokio::test]
async fn case_1_a_slice_port_without_name_is_the_unnamed_port() -> Result<()> {
    let stage = Stage::standalone().await?;
    let app = Backend::start("hand-made")?;
    stage.create_service(stage.open_service("bare").port("", 80, "8080")).await?;
    let address = app.address().ip().to_string();
    let slice = SliceSpec::new(&stage.namespace, "bare-1", "bare").endpoint(&address, true, true, false);
    let slice = slice.port("", 8080).with(|slice| {
        for port in slice.ports.iter_mut().flatten() {
            port.name = None;
        }
    });
    stage.put_slice(slice).await?;
    stage.until(&stage.host("bare"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_2_a_number_is_the_services_port_and_never_the_pods() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    // Each Service port's number is the other one's target.
    let spec = stage.bare_service("web").port("one", 9001, "9002").port("two", 9002, "9001").annotation(PORT, "9001");
    stage.create_service(spec).await?;
    let (web, _two) = pod(&stage, "web", "pod", &[], 9002).await?;
    let wrong = Backend::at_port("wrong", SocketAddr::new(web.pod.address, 9001));
    wrong.listen()?;
    let answer = stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    assert_eq!(answer.pod()?, "pod");
    assert_eq!(wrong.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn case_3_a_name_is_the_services_port_name_and_neither_the_containers_nor_the_target() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let ports = [("alpha", 9001), ("beta", 9002)];
    // `alpha` of the Service leads to the container's `beta`.
    let spec = stage.bare_service("web").port("alpha", 80, "beta").port("beta", 81, "alpha").annotation(PORT, "alpha");
    stage.create_service(spec).await?;
    let _pod = pod(&stage, "web", "pod", &ports, 9002).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_4_target_ports_are_numbers_names_and_the_port_itself_and_a_native_sidecars() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.bare_service("number").port("http", 80, "9001")).await?;
    let _number = pod(&stage, "number", "number-1", &[], 9001).await?;
    stage.create_service(stage.bare_service("name").port("http", 80, "web")).await?;
    let _name = pod(&stage, "name", "name-1", &[("web", 9003)], 9003).await?;
    let omitted = stage.bare_service("omitted").port("http", 9004, "1").with(|spec| {
        for port in spec.ports.iter_mut().flatten() {
            port.target_port = None;
        }
    });
    stage.create_service(omitted).await?;
    let _omitted = pod(&stage, "omitted", "omitted-1", &[], 9004).await?;
    stage.create_service(stage.bare_service("native").port("http", 80, "mesh")).await?;
    let address = nowhere();
    let app = Backend::at_port("native-1", SocketAddr::new(address, 9005));
    app.listen()?;
    let native = ContainerSpec::new("mesh").port("mesh", 9005);
    let spec =
        stage.bare_pod_spec("native", "native-1").container(ContainerSpec::new("app")).init_container(native, true);
    stage.create_pod(spec, &running_ready(address)).await?;
    for name in ["number", "name", "omitted", "native"] {
        let answer = stage.until(&stage.host(name), |answer| answer.status == 200).await?;
        assert_eq!(answer.pod()?, format!("{name}-1"));
    }
    Ok(())
}

#[tokio::test]
async fn case_5_one_name_leads_to_a_different_number_on_each_pod() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let (_old, old) = pod(&stage, "web", "old", &[("http", 9001)], 9001).await?;
    let (_new, new) = pod(&stage, "web", "new", &[("http", 9002)], 9002).await?;
    stage.wait_endpoints("web", 2).await?;
    for pod in ["old", "new"] {
        stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|answered| answered == pod)).await?;
    }
    for _ in 0..40 {
        stage.get("web", "/").await?.seen()?;
    }
    ensure!(old.requests() > 5 && new.requests() > 5, "{} {}", old.requests(), new.requests());
    Ok(())
}

#[tokio::test]
async fn case_5_address_and_port_are_paired_within_one_slice_of_several_ports() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.open_service("bare").port("http", 80, "http").port("admin", 81, "admin")).await?;
    let mut apps = Vec::new();
    for (name, http, admin) in [("old", 9001, 9002), ("new", 9003, 9004)] {
        let address = nowhere();
        for port in 9001..=9004 {
            let app = Backend::at_port(&format!("{name}-{port}"), SocketAddr::new(address, port));
            app.listen()?;
            apps.push(app);
        }
        let slice = SliceSpec::new(&stage.namespace, name, "bare").endpoint(&address.to_string(), true, true, false);
        stage.put_slice(slice.port("admin", admin).port("http", http)).await?;
    }
    stage.wait_endpoints("bare", 2).await?;
    for pod in ["old-9001", "new-9003"] {
        stage.until(&stage.host("bare"), |answer| answer.pod().is_ok_and(|answered| answered == pod)).await?;
    }
    for _ in 0..20 {
        let pod = stage.get("bare", "/").await?.pod()?;
        ensure!(["old-9001", "new-9003"].contains(&&*pod), "{pod}");
    }
    Ok(())
}

#[tokio::test]
async fn case_6_a_ready_pod_without_the_named_port_is_no_candidate_and_its_requests_wait() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let (_bare, bare) = pod(&stage, "web", "bare", &[("other", 9001)], 9001).await?;
    stage.wait("web", "bare", "ready observed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    let _whole = stage.ready_web("web", "whole").await?;
    assert_eq!(held.await??.pod()?, "whole");
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "whole");
    }
    assert_eq!(bare.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn case_7_a_udp_port_of_the_same_number_is_not_it() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let spec = stage.bare_service("web").port("h3", 443, "9443").transport("UDP").port("https", 443, "9444");
    stage.create_service(spec.annotation(PORT, "443")).await?;
    let (web, _tcp) = pod(&stage, "web", "pod", &[], 9444).await?;
    let udp = Backend::at_port("udp", SocketAddr::new(web.pod.address, 9443));
    udp.listen()?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "pod")).await?;
    assert_eq!(udp.requests(), 0);
    // Alone it is no port at all.
    stage.create_service(stage.bare_service("udp").port("dns", 53, "9053").transport("UDP")).await?;
    let answer = stage.until(&stage.host("udp"), |answer| answer.status != 404).await?;
    ensure!(answer.status >= 400 && !answer.error().is_empty(), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn case_7_of_several_ports_the_only_one_then_http_then_an_error_that_lists_them() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.bare_service("web").port("admin", 81, "9002").port("http", 80, "9001")).await?;
    let _pod = pod(&stage, "web", "pod", &[], 9001).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    stage.create_service(stage.bare_service("two").port("left", 81, "9002").port("right", 82, "9001")).await?;
    let answer = stage.until(&stage.host("two"), |answer| answer.status != 404).await?;
    ensure!(answer.status >= 400 && !answer.error().is_empty(), "{answer:?}");
    let text = answer.text();
    ensure!(["81", "left", "82", "right"].iter().all(|part| text.contains(part)), "{text}");
    // Named, it works at once.
    stage.annotate("two", PORT, Some("right")).await?;
    let _other = pod(&stage, "two", "other", &[], 9001).await?;
    stage.until(&stage.host("two"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_8_two_service_ports_and_two_services_may_lead_to_one_container_port() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let spec = |name: &str| stage.open_service(name).selector("app", "web").port("a", 80, "9001").port("b", 81, "9001");
    stage.create_service(spec("first").annotation(PORT, "a")).await?;
    stage.create_service(spec("second").annotation(PORT, "b")).await?;
    let (_web, app) = pod(&stage, "web", "pod", &[], 9001).await?;
    for service in ["first", "second"] {
        stage.until(&stage.host(service), |answer| answer.pod().is_ok_and(|pod| pod == "pod")).await?;
    }
    ensure!(app.requests() >= 2, "{}", app.requests());
    Ok(())
}

#[tokio::test]
async fn case_9_a_slice_port_without_number_needs_an_explicit_one() -> Result<()> {
    let stage = Stage::standalone().await?;
    let app = Backend::start("any-port")?;
    let address = app.address().ip().to_string();
    let slice = |service: &str| {
        let slice =
            SliceSpec::new(&stage.namespace, &format!("{service}-1"), service).endpoint(&address, true, true, false);
        slice.port("", 1).with(|slice| {
            for port in slice.ports.iter_mut().flatten() {
                port.port = None;
            }
        })
    };
    // "All ports" is no port to dial.
    stage
        .create_service(stage.open_service("any").port("", 80, "8080").annotation("podlight.dev/hold-timeout", "1s"))
        .await?;
    stage.put_slice(slice("any")).await?;
    stage.until(&stage.host("any"), |answer| answer.status == 504).await?.refused(504)?;
    // A headless Service without ports, and a number given.
    let headless = stage.open_service("portless").headless().annotation(PORT, "8080");
    stage.create_service(headless).await?;
    let empty = SliceSpec::new(&stage.namespace, "portless-1", "portless").endpoint(&address, true, true, false);
    stage.put_slice(empty).await?;
    stage.until(&stage.host("portless"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_10_a_port_that_does_not_exist_is_a_clear_error_and_cured_by_the_service() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").annotation(PORT, "grpc")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    for wrong in ["grpc", "8080", "0", "65536", "http,grpc"] {
        stage.annotate("web", PORT, Some(wrong)).await?;
        podlight_e2e::eventually::eventually("it is told, with the ports there are", async || {
            let told = stage.activator().admin("/status").await?.body;
            ensure!(told.contains(&format!("podlight.dev/port: \\\"{wrong}\\\"")) && told.contains("http"), "{told}");
            Ok(Some(()))
        })
        .await?;
    }
    stage.annotate("web", PORT, Some("grpc")).await?;
    // The Service's port gets that name.
    let ports = serde_json::json!([{ "name": "grpc", "port": 80, "targetPort": "http", "protocol": "TCP" }]);
    stage.patch_service("web", serde_json::json!({ "spec": { "ports": ports } })).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_10_a_service_port_that_is_edited_is_followed() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.bare_service("web").port("http", 80, "9001")).await?;
    let (web, _first) = pod(&stage, "web", "first", &[], 9001).await?;
    let second = Backend::at_port("second", SocketAddr::new(web.pod.address, 9002));
    second.listen()?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "first")).await?;
    let ports = serde_json::json!([{ "name": "renamed", "port": 81, "targetPort": 9002, "protocol": "TCP" }]);
    stage.patch_service("web", serde_json::json!({ "spec": { "ports": ports } })).await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "second")).await?;
    assert_eq!(stage.get("web", "/").await?.pod()?, "second");
    Ok(())
}

#[tokio::test]
async fn case_11_the_app_protocol_of_the_chosen_port_decides() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let spec =
        stage.bare_service("web").port("plain", 80, "http").port("two", 81, "http").app_protocol("kubernetes.io/h2c");
    stage.create_service(spec.annotation(PORT, "plain")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    let host = stage.host("web");
    stage.until(&host, |answer| answer.seen().is_ok_and(|seen| seen.version == "HTTP/1.1")).await?;
    stage.annotate("web", PORT, Some("two")).await?;
    stage.until(&host, |answer| answer.seen().is_ok_and(|seen| seen.version == "HTTP/2.0")).await?;
    Ok(())
}

#[tokio::test]
async fn case_11_node_ports_make_no_difference() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let spec = stage.service("web").with(|spec| spec.type_ = Some("NodePort".to_owned()));
    stage.create_service(spec).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_12_a_sidecar_cannot_claim_anothers_address_and_its_port_is_the_services() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.bare_service("web").port("http", 80, "9001")).await?;
    let address = nowhere();
    let thief_app = Backend::at_port("thief", SocketAddr::new(nowhere(), 9001));
    thief_app.listen()?;
    let app = Backend::at_port("web-1", SocketAddr::new(address, 9001));
    app.listen()?;
    // What the sidecar declares (8080) is not where requests go: that is the Service's to say.
    let container = ContainerSpec::new("app").port("http", 9001).readiness(http_probe("/ready", 9001));
    let pod = stage.create_pod(stage.bare_pod_spec("web", "web-1").container(container), &running(address)).await?;
    pod.ready().await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "web-1")).await?;
    let base = stage.activator().url();
    let claim = pod.sender().event(podlight_proto::Kind::Ready);
    let claim = claim.addresses(&[&thief_app.address().ip().to_string()]).token(&pod.token).sign().post(&base).await?;
    ensure!(claim.status >= 400, "taken: {claim:?}");
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "web-1");
    }
    assert_eq!(thief_app.requests(), 0);
    Ok(())
}
