//! Which endpoints a request may go to: cases 13 to 28 of the endpoint notes. Slices are manifests here, since a real API server
//! refuses loopback addresses in them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use k8s_openapi::api::discovery::v1::{EndpointHints, ForZone};
use podlight_e2e::backend::{Backend, PORT};
use podlight_e2e::control_plane::process::free_port;
use podlight_e2e::control_plane::{ContainerSpec, PodState, SliceSpec};
use podlight_e2e::proxy::client::{self, ask, get};
use podlight_e2e::proxy::counts::wait_held;
use podlight_e2e::proxy::stage::{Stage, nowhere, running, running_ready};
use podlight_e2e::scene::seconds_ago;
use podlight_proto::Kind;

use crate::scene;

const HOLD: &str = "podlight.dev/hold-timeout";

fn slice(stage: &Stage<'_>, name: &str, service: &str) -> SliceSpec {
    SliceSpec::new(&stage.namespace, name, service).port("http", PORT)
}

/// A Service whose slices somebody else makes.
async fn bare(stage: &Stage<'_>, name: &str) -> Result<()> {
    stage.create_service(stage.open_service(name).port("http", 80, "8080").annotation(HOLD, "1s")).await
}

#[tokio::test]
async fn case_13_a_dual_stack_pod_is_one_endpoint_and_the_services_first_family_is_dialled() -> Result<()> {
    let stage = Stage::standalone().await?;
    let families = |first: &str, second: &str| vec![first.to_owned(), second.to_owned()];
    for (name, families) in [("four", families("IPv4", "IPv6")), ("six", families("IPv6", "IPv4"))] {
        let spec = stage.service(name).with(|spec| {
            spec.ip_families = Some(families);
            spec.ip_family_policy = Some("RequireDualStack".to_owned());
        });
        stage.create_service(spec).await?;
        let address = nowhere();
        let [four, six] = [address, "::1".parse::<IpAddr>()?];
        let port = free_port()?;
        let app = |pod: &str, address| {
            let app = Backend::at_port(pod, SocketAddr::new(address, port));
            app.listen().map(|()| app)
        };
        let _apps = (app("over-four", four)?, app("over-six", six)?);
        let container = ContainerSpec::new("app").port("http", port);
        let pod = stage.bare_pod_spec(name, &format!("{name}-1")).container(container);
        let state = running_ready(four).address("::1");
        stage.create_pod(pod, &state).await?;
        stage.wait_endpoints(name, 1).await?;
        let expected = format!("over-{name}");
        stage.until(&stage.host(name), |answer| answer.pod().is_ok_and(|pod| pod == expected)).await?;
        for _ in 0..10 {
            assert_eq!(stage.get(name, "/").await?.pod()?, expected, "no double weight, no mixing");
        }
    }
    Ok(())
}

#[tokio::test]
async fn case_13_the_other_family_is_taken_where_a_pod_has_no_address_of_the_first() -> Result<()> {
    let stage = Stage::standalone().await?;
    let spec = stage.service("web").with(|spec| {
        spec.ip_families = Some(vec!["IPv6".to_owned(), "IPv4".to_owned()]);
    });
    stage.create_service(spec).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_13_the_other_family_is_dialled_where_the_first_cannot_be_reached() -> Result<()> {
    let stage = Stage::standalone().await?;
    let spec = stage.service("web").with(|spec| {
        spec.ip_families = Some(vec!["IPv6".to_owned(), "IPv4".to_owned()]);
    });
    stage.create_service(spec).await?;
    // Nothing of it listens at its address of the first family.
    let app = Backend::start("over-four")?;
    let state = running_ready(app.address().ip()).address("::1");
    stage.create_pod(stage.pod_spec("web", "web-1"), &state).await?;
    stage.wait_endpoints("web", 1).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "over-four");
    }
    Ok(())
}

#[tokio::test]
async fn case_14_a_slice_of_names_is_never_dialled() -> Result<()> {
    let stage = Stage::standalone().await?;
    bare(&stage, "names").await?;
    let names = slice(&stage, "names-1", "names").endpoint("localhost", true, true, false).with(|slice| {
        slice.address_type = "FQDN".to_owned();
    });
    stage.put_slice(names).await?;
    stage.until(&stage.host("names"), |answer| answer.status == 504).await?.refused(504)?;
    Ok(())
}

#[tokio::test]
async fn case_14_only_the_first_address_of_an_endpoint_counts_and_none_is_passed_over() -> Result<()> {
    let stage = Stage::standalone().await?;
    bare(&stage, "bare").await?;
    let (first, second) = (Backend::start("first")?, Backend::start("second")?);
    let addresses = [&first, &second].map(|app| app.address().ip().to_string());
    let slice = slice(&stage, "bare-1", "bare").endpoint(&addresses[0], true, true, false);
    stage
        .put_slice(slice.endpoint("127.0.0.1", true, true, false).with(|slice| {
            let endpoints = slice.endpoints.get_or_insert_default();
            endpoints[0].addresses.push(addresses[1].clone());
            endpoints[1].addresses.clear();
        }))
        .await?;
    stage.until(&stage.host("bare"), |answer| answer.status == 200).await?;
    for _ in 0..20 {
        assert_eq!(stage.get("bare", "/").await?.pod()?, "first");
    }
    assert_eq!(second.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn case_15_ipv6_hosts_have_brackets_and_addresses_are_compared_parsed() -> Result<()> {
    let stage = Stage::standalone().await?;
    bare(&stage, "six").await?;
    let port = free_port()?;
    let app = Backend::at_port("six", SocketAddr::new("::1".parse()?, port));
    app.listen()?;
    // The same address in two spellings is one endpoint.
    let spell = |name: &str, address: &str| {
        SliceSpec::new(&stage.namespace, name, "six").port("http", port).endpoint(address, true, true, false)
    };
    stage.put_slice(spell("six-1", "::1")).await?;
    stage.put_slice(spell("six-2", "0:0:0:0:0:0:0:1")).await?;
    stage.until(&stage.host("six"), |answer| answer.status == 200).await?;
    stage.wait_endpoints("six", 1).await?;
    for host in ["[::1]", "[::1]:80", "[fe80::1%25eth0]", "[::ffff:127.0.0.1]:8080"] {
        let answer = ask(stage.proxy()?, get(host, "/")).await?;
        ensure!(matches!(answer.status, 400 | 404), "{host}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn case_16_pods_of_one_node_share_its_address_and_are_told_apart_by_uid_and_port() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let address = nowhere();
    let mut apps = Vec::new();
    let mut pods = Vec::new();
    for (name, port) in [("left", 9101), ("right", 9102)] {
        let app = Backend::at_port(name, SocketAddr::new(address, port));
        app.listen()?;
        let container = ContainerSpec::new("app").port("http", port);
        let spec = stage.bare_pod_spec("web", name).host_network().container(container);
        let pod = stage.create_pod(spec, &running(address)).await?;
        pod.introduce().await?;
        apps.push(app);
        pods.push(pod);
    }
    pods[1].say(Kind::Ready).await?;
    stage.wait("web", "right", "ready pushed").await?;
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "right");
    }
    pods[0].say(Kind::Ready).await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "left")).await?;
    Ok(())
}

#[tokio::test]
async fn case_17_a_new_pod_at_a_reused_address_gets_no_connection_of_the_old_one() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let old = stage.ready_web("web", "old").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    ensure!(old.app.open_connections() > 0, "nothing is pooled: the case proves nothing");
    // The old app lives on, and would answer whatever came on the connection it has.
    let address = old.pod.address;
    old.app.refuse().await;
    stage.delete_pod("old", 0).await?;
    stage.wait_endpoints("web", 0).await?;
    let app = Backend::at("new", address);
    app.listen()?;
    let new = stage.pod_at("web", "new", address).await?;
    new.ready().await?;
    let before = old.app.requests();
    for _ in 0..20 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "new");
    }
    assert_eq!(old.app.requests(), before);
    // A late word of the old one touches nothing.
    let late = old.pod.say(Kind::Draining).await;
    ensure!(
        late.is_err() || stage.get("web", "/").await?.status == 200,
        "the new pod was drained by the old one's word"
    );
    assert_eq!(stage.get("web", "/").await?.pod()?, "new");
    Ok(())
}

#[tokio::test]
async fn case_18_a_pod_without_an_address_is_waited_for_and_one_that_changes_it_is_followed() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let nothing = PodState::new().phase("Pending").ready(false, seconds_ago(60));
    stage.create_pod(stage.pod_spec("web", "web-1"), &nothing).await?;
    stage.wait("web", "web-1", "not-ready observed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    let app = Backend::start("first-address")?;
    stage.set_state("web-1", &running_ready(app.address().ip())).await?;
    assert_eq!(held.await??.pod()?, "first-address");
    let moved = Backend::start("second-address")?;
    stage.set_state("web-1", &running_ready(moved.address().ip())).await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "second-address")).await?;
    assert_eq!(stage.get("web", "/").await?.pod()?, "second-address");
    Ok(())
}

#[tokio::test]
async fn case_18_a_push_before_the_pods_address_is_published_releases_requests_to_where_it_comes_from() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    // The only address that an event may name while the API server names none.
    let (here, port) = (IpAddr::from([127, 0, 0, 1]), free_port()?);
    let app = Backend::at_port("pushed", SocketAddr::new(here, port));
    app.listen()?;
    let spec = stage.bare_pod_spec("web", "web-1").container(ContainerSpec::new("app").port("http", port));
    let pod = stage.create_pod(spec, &PodState::new().phase("Pending")).await?;
    stage.wait("web", "web-1", "not-ready observed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    let (base, addresses) = (stage.activator().url(), [here.to_string()]);
    let event = |kind| pod.sender().event(kind).addresses(&addresses.each_ref().map(String::as_str));
    event(Kind::NotReady).token(&pod.token).sign().post(&base).await?.accepted()?;
    let endpoint = stage.wait("web", "web-1", "not-ready pushed").await?;
    assert_eq!((endpoint.addresses, app.connections()), (addresses.to_vec(), 0), "it is known, and not asked");
    event(Kind::Ready).sign().post(&base).await?.accepted()?;
    assert_eq!(held.await??.pod()?, "pushed");
    // Once there is a published one, that counts.
    let published = Backend::at_port("published", SocketAddr::new(nowhere(), port));
    published.listen()?;
    stage.set_state("web-1", &running_ready(published.address().ip())).await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "published")).await?;
    assert_eq!(stage.get("web", "/").await?.pod()?, "published");
    Ok(())
}

#[tokio::test]
async fn case_19_a_terminating_pod_that_serves_is_the_last_resort_and_one_that_does_not_is_none() -> Result<()> {
    let stage = Stage::standalone().await?;
    bare(&stage, "bare").await?;
    let apps = [Backend::start("ready")?, Backend::start("leaving")?, Backend::start("gone")?];
    let [ready, leaving, gone] = apps.each_ref().map(|app| app.address().ip().to_string());
    let ending = |spec: SliceSpec| spec.endpoint(&leaving, false, true, true).endpoint(&gone, false, false, true);
    stage.put_slice(ending(slice(&stage, "bare-1", "bare").endpoint(&ready, true, true, false))).await?;
    stage.until(&stage.host("bare"), |answer| answer.status == 200).await?;
    for _ in 0..10 {
        assert_eq!(stage.get("bare", "/").await?.pod()?, "ready");
    }
    stage.put_slice(ending(slice(&stage, "bare-1", "bare"))).await?;
    stage.until(&stage.host("bare"), |answer| answer.pod().is_ok_and(|pod| pod == "leaving")).await?;
    for _ in 0..10 {
        assert_eq!(stage.get("bare", "/").await?.pod()?, "leaving");
    }
    stage.put_slice(slice(&stage, "bare-1", "bare").endpoint(&gone, false, false, true)).await?;
    stage.until(&stage.host("bare"), |answer| answer.status == 504).await?;
    assert_eq!(apps[2].requests(), 0);
    Ok(())
}

#[tokio::test]
async fn case_19_the_only_pod_of_a_selector_is_asked_while_it_terminates_and_serves_until_it_is_gone() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").headless().annotation(HOLD, "1s")).await?;
    let leaving = stage.ready_web("web", "leaving").await?;
    stage.set_state("leaving", &running_ready(leaving.pod.address)).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let under_way = client::start(stage.proxy()?, get(&stage.host("web"), "/gate"));
    leaving.app.wait_at_gate(1).await?;
    stage.delete_pod("leaving", 600).await?;
    stage.wait("web", "leaving", "terminating observed").await?;
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "leaving");
    }
    // As soon as there is another, that one takes them all.
    let next = stage.ready_web("web", "next").await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "next")).await?;
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "next");
    }
    next.pod.say(Kind::NotReady).await?;
    stage.wait("web", "next", "not-ready pushed").await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "leaving")).await?;
    leaving.app.open_gate(true);
    assert_eq!(under_way.await??.pod()?, "leaving");
    stage.delete_pod("leaving", 0).await?;
    stage.reader()?.wait_gone(&stage.namespace, "web", "leaving").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 504).await?.refused(504)?;
    let asked = (leaving.app.requests(), next.app.requests());
    stage.get("web", "/").await?.refused(504)?;
    assert_eq!((leaving.app.requests(), next.app.requests()), asked);
    Ok(())
}

#[tokio::test]
async fn case_19_a_terminating_pod_that_stops_serving_is_asked_no_more() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").headless().annotation(HOLD, "1s")).await?;
    let leaving = stage.ready_web("web", "leaving").await?;
    stage.set_state("leaving", &running_ready(leaving.pod.address)).await?;
    stage.delete_pod("leaving", 600).await?;
    stage.wait("web", "leaving", "terminating observed").await?;
    assert_eq!(stage.get("web", "/").await?.pod()?, "leaving");
    // Its kubelet finds that it does not answer its probe.
    stage.set_state("leaving", &running(leaving.pod.address)).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 504).await?.refused(504)?;
    let asked = leaving.app.requests();
    stage.get("web", "/").await?.refused(504)?;
    assert_eq!(leaving.app.requests(), asked);
    stage.delete_pod("leaving", 0).await?;
    Ok(())
}

#[tokio::test]
async fn case_19_conditions_that_are_not_said_mean_ready_serving_and_not_terminating() -> Result<()> {
    let stage = Stage::standalone().await?;
    bare(&stage, "bare").await?;
    let app = Backend::start("unsaid")?;
    let unsaid = slice(&stage, "bare-1", "bare").endpoint(&app.address().ip().to_string(), true, true, false);
    stage
        .put_slice(unsaid.with(|slice| {
            for endpoint in slice.endpoints.iter_mut().flatten() {
                endpoint.conditions = None;
            }
        }))
        .await?;
    stage.until(&stage.host("bare"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_20_with_publish_not_ready_addresses_a_pod_is_asked_before_it_is_ready_but_not_once_it_leaves()
-> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let spec = stage.service("web").with(|spec| spec.publish_not_ready_addresses = Some(true));
    stage.create_service(spec.annotation(HOLD, "1s")).await?;
    let early = stage.web("web", "early").await?;
    early.pod.introduce().await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "early")).await?;
    let _ready = stage.ready_web("web", "ready").await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "ready")).await?;
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "ready", "a ready one goes first");
    }
    // "Ready" in its slice until the very end; its drain is what counts.
    early.pod.say(Kind::Draining).await?;
    stage.wait("web", "early", "draining pushed").await?;
    let before = early.app.requests();
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "ready");
    }
    assert_eq!(early.app.requests(), before);
    Ok(())
}

#[tokio::test]
async fn case_21_a_pod_that_has_ended_gets_nothing() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let ended = stage.ready_web("web", "ended").await?;
    let alive = stage.ready_web("web", "alive").await?;
    stage.set_state("ended", &PodState::new().phase("Succeeded").ready(false, seconds_ago(0))).await?;
    stage.wait("web", "ended", "not-ready observed").await?;
    let before = ended.app.requests();
    for _ in 0..20 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "alive");
    }
    assert_eq!(ended.app.requests(), before);
    drop(alive);
    Ok(())
}

#[tokio::test]
async fn case_22_endpoints_of_many_slices_are_one_set_without_doubles() -> Result<()> {
    let stage = Stage::standalone().await?;
    bare(&stage, "bare").await?;
    let apps: Vec<Backend> = (0..4).map(|n| Backend::start(&format!("app-{n}"))).collect::<Result<_>>()?;
    for (n, pair) in apps.windows(2).enumerate() {
        // Each is in two slices, but for the ends.
        let spec = pair.iter().fold(slice(&stage, &format!("bare-{n}"), "bare"), |spec, app| {
            spec.endpoint(&app.address().ip().to_string(), true, true, false)
        });
        stage.put_slice(spec).await?;
    }
    // A placeholder has neither endpoints nor ports.
    stage.put_slice(SliceSpec::new(&stage.namespace, "bare-none", "bare")).await?;
    stage.wait_endpoints("bare", 4).await?;
    for n in 0..4 {
        let pod = format!("app-{n}");
        stage.until(&stage.host("bare"), |answer| answer.pod().is_ok_and(|answered| answered == pod)).await?;
    }
    // While it moves from one slice to another, nothing is lost.
    stage.remove_slice("bare-1")?;
    for _ in 0..50 {
        stage.get("bare", "/").await?.seen()?;
    }
    Ok(())
}

#[tokio::test]
async fn case_23_a_slice_that_changes_its_service_or_goes_takes_its_endpoints_along() -> Result<()> {
    let stage = Stage::standalone().await?;
    for name in ["one", "two"] {
        bare(&stage, name).await?;
    }
    let app = Backend::start("wanderer")?;
    let at =
        |service: &str| slice(&stage, "slice", service).endpoint(&app.address().ip().to_string(), true, true, false);
    stage.put_slice(at("one")).await?;
    stage.until(&stage.host("one"), |answer| answer.status == 200).await?;
    stage.put_slice(at("two")).await?;
    stage.until(&stage.host("two"), |answer| answer.status == 200).await?;
    stage.until(&stage.host("one"), |answer| answer.status == 504).await?;
    stage.put_slice(at("two").with(|slice| slice.metadata.labels = None)).await?;
    stage.until(&stage.host("two"), |answer| answer.status == 504).await?;
    stage.put_slice(at("one")).await?;
    stage.until(&stage.host("one"), |answer| answer.status == 200).await?;
    stage.remove_slice("slice")?;
    stage.until(&stage.host("one"), |answer| answer.status == 504).await?;
    Ok(())
}

#[tokio::test]
async fn case_24_a_headless_service_goes_straight_to_pods_in_every_mode() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    for mode in ["always", "cold-start-only", "disabled"] {
        let spec = stage.service(mode).headless().annotation(podlight_e2e::proxy::stage::ROUTE, mode);
        stage.create_service(spec).await?;
        let pod = format!("{mode}-1");
        let _web = stage.ready_web(mode, &pod).await?;
        stage.until(&stage.host(mode), |answer| answer.pod().is_ok_and(|answered| answered == pod)).await?;
    }
    // Nobody is ready: there is no ClusterIP to fall back to.
    stage.create_service(stage.service("empty").headless().annotation(HOLD, "1s")).await?;
    stage.until(&stage.host("empty"), |answer| answer.status == 504).await?;
    Ok(())
}

#[tokio::test]
async fn case_24_a_pod_of_a_stateful_set_by_its_own_host_name_is_404_that_names_it() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").headless()).await?;
    let app = Backend::start("web-0")?;
    // As its controller makes it: DNS has a name for this pod alone.
    let spec = stage.pod_spec("web", "web-0").with(|spec| {
        spec.hostname = Some("web-0".to_owned());
        spec.subdomain = Some("web".to_owned());
    });
    let pod = stage.create_pod(spec, &running(app.address().ip())).await?;
    pod.ready().await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "web-0")).await?;
    let asked = app.requests();
    let name = format!("web-0.{}", stage.host("web"));
    for host in [name.clone(), format!("{name}.svc"), format!("{name}.svc.cluster.local")] {
        let answer = ask(stage.proxy()?, get(&host, "/")).await?;
        answer.refused(404)?;
        assert_eq!(answer.error(), "unknown-host", "{host}");
        ensure!(answer.text().contains(&host), "{}", answer.text());
    }
    assert_eq!(app.requests(), asked, "it is not supported, and nobody else is asked instead");
    Ok(())
}

#[tokio::test]
async fn case_25_a_service_without_selector_has_the_endpoints_of_its_slices() -> Result<()> {
    let stage = Stage::standalone().await?;
    bare(&stage, "bare").await?;
    let (up, down) = (Backend::start("up")?, Backend::start("down")?);
    let spec = slice(&stage, "bare-1", "bare").endpoint(&up.address().ip().to_string(), true, true, false);
    stage.put_slice(spec.endpoint(&down.address().ip().to_string(), false, false, false)).await?;
    stage.until(&stage.host("bare"), |answer| answer.status == 200).await?;
    for _ in 0..20 {
        assert_eq!(stage.get("bare", "/").await?.pod()?, "up");
    }
    assert_eq!(down.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn case_26_session_affinity_and_local_traffic_are_passed_by_and_every_pod_is_asked() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let spec = stage.service("web").with(|spec| {
        spec.session_affinity = Some("ClientIP".to_owned());
        spec.internal_traffic_policy = Some("Local".to_owned());
        spec.traffic_distribution = Some("PreferClose".to_owned());
    });
    stage.create_service(spec).await?;
    let _webs = (stage.ready_web("web", "web-1").await?, stage.ready_web("web", "web-2").await?);
    for pod in ["web-1", "web-2", "web-1", "web-2"] {
        stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|answered| answered == pod)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn case_26_hints_for_zones_are_passed_by_and_every_endpoint_is_asked() -> Result<()> {
    let stage = Stage::standalone().await?;
    bare(&stage, "bare").await?;
    let apps = [Backend::start("here")?, Backend::start("there")?];
    let spec = apps.iter().fold(slice(&stage, "bare-1", "bare"), |spec, app| {
        spec.endpoint(&app.address().ip().to_string(), true, true, false)
    });
    stage
        .put_slice(spec.with(|slice| {
            for (endpoint, zone) in slice.endpoints.iter_mut().flatten().zip(["zone-a", "zone-b"]) {
                endpoint.zone = Some(zone.to_owned());
                endpoint.hints = Some(EndpointHints {
                    for_zones: Some(vec![ForZone { name: zone.to_owned() }]),
                    ..EndpointHints::default()
                });
            }
        }))
        .await?;
    for pod in ["here", "there", "here", "there"] {
        stage.until(&stage.host("bare"), |answer| answer.pod().is_ok_and(|answered| answered == pod)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn case_27_a_push_alone_makes_no_member_when_a_selector_changes() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").annotation(HOLD, "1s")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    stage.patch_service("web", serde_json::json!({ "spec": { "selector": { "app": "other" } } })).await?;
    stage.wait_endpoints("web", 0).await?;
    web.pod.say(Kind::NotReady).await?;
    web.pod.say(Kind::Ready).await?;
    let before = web.app.requests();
    stage.get("web", "/").await?.refused(504)?;
    assert_eq!(web.app.requests(), before);
    Ok(())
}

#[tokio::test]
async fn case_27_a_service_that_is_deleted_and_comes_back_is_routed_again() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    stage.delete_service("web").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 404).await?;
    stage.create_service(stage.service("web")).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok(())
}

#[tokio::test]
async fn case_27_requests_held_for_a_service_that_is_deleted_are_told() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    stage.until(&stage.host("nothing"), |answer| answer.status == 404).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    web.pod.say(Kind::NotReady).await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    stage.delete_service("web").await?;
    let answer = held.await??;
    ensure!(matches!(answer.status, 404 | 503) && !answer.error().is_empty(), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn case_28_one_push_releases_requests_of_every_service_that_selects_the_pod() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    for name in ["one", "two", "three"] {
        stage.create_service(stage.open_service(name).selector("app", "shared").port("http", 80, "http")).await?;
    }
    let web = stage.web("shared", "shared-1").await?;
    web.pod.introduce().await?;
    for name in ["one", "two", "three"] {
        stage.wait(name, "shared-1", "not-ready pushed").await?;
    }
    let held: Vec<_> = ["one", "two", "three"]
        .into_iter()
        .map(|name| Ok(client::start(stage.proxy()?, get(&stage.host(name), "/"))))
        .collect::<Result<_>>()?;
    wait_held(stage.activator(), 3).await?;
    web.pod.say(Kind::Ready).await?;
    for answer in held {
        assert_eq!(answer.await??.pod()?, "shared-1");
    }
    Ok(())
}
