//! Large clusters, and probes of pods.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use podlight_e2e::control_plane::SliceSpec;
use podlight_e2e::eventually::{eventually, within};
use podlight_e2e::net::ask::curl;
use podlight_e2e::net::ground::{Ground, GroundSpec, Mode};
use podlight_e2e::net::pair::{SERVER, SERVER6};
use podlight_e2e::net::servers::nginx_that_answers;
use podlight_e2e::proxy::manifests::manifest;
use podlight_e2e::proxy::stage::running;
use podlight_proto::Kind;

/// Endpoints of a slice: what it takes at most.
const IN_A_SLICE: u32 = 1000;

const ENDPOINTS: u32 = 100_000;

/// Longest that so many may take to be read and written.
const LOADING: std::time::Duration = std::time::Duration::from_secs(120);

/// The address of an endpoint.
fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + n).into()
}

/// The Service of an endpoint, if each has so many.
fn service(n: u32, in_a_service: u32) -> String {
    format!("web-{}", n / in_a_service)
}

/// Every third one is not ready.
fn is_ready(n: u32) -> bool {
    !n.is_multiple_of(3)
}

#[test]
fn each_of_a_hundred_thousand_endpoints_has_its_answer() -> Result<()> {
    answers_for_all(IN_A_SLICE)
}

#[test]
fn each_of_a_hundred_thousand_endpoints_of_one_service_has_its_answer() -> Result<()> {
    answers_for_all(ENDPOINTS)
}

fn answers_for_all(in_a_service: u32) -> Result<()> {
    GroundSpec::new(Mode::Generic).run(async |ground| {
        let stage = &ground.stage;
        let service = |n| service(n, in_a_service);
        let mut objects = Vec::new();
        for first in (0..ENDPOINTS).step_by(IN_A_SLICE as usize) {
            let name = service(first);
            if first.is_multiple_of(in_a_service) {
                objects.push(manifest(&stage.open_service(&name).port("http", 80, "8080").build())?);
            }
            let slice = SliceSpec::new(&stage.namespace, &format!("slice-{first}"), &name).port("http", 8080);
            let slice = (first..first + IN_A_SLICE)
                .fold(slice, |slice, n| slice.endpoint(&address(n).to_string(), is_ready(n), is_ready(n), false));
            objects.push(manifest(&slice.build())?);
        }
        stage.put(objects)?;
        within(LOADING, "all are answered", async || {
            let map = ground.status().await?["map"].take();
            let (answers, left_out) = (map["answers"].as_u64().unwrap_or(0), map["left_out"].as_u64().unwrap_or(1));
            ensure!(answers >= u64::from(ENDPOINTS + ENDPOINTS / in_a_service) && left_out == 0, "{map}");
            Ok(Some(()))
        })
        .await?;
        // One more slice of a Service is no reason to be silent about the others.
        let another = SliceSpec::new(&stage.namespace, "another", &service(0)).port("http", 8080);
        stage
            .put(vec![manifest(&another.endpoint(&address(ENDPOINTS + 1).to_string(), true, true, false).build())?])?;
        ground.until(&ground.path_of(&service(0), address(ENDPOINTS + 1)), 200).await?;
        let before = ground.counters().await?;
        // A step that is no divisor goes everywhere.
        for n in (0..ENDPOINTS).step_by(97) {
            let path = ground.path_of(&service(n), address(n));
            let (status, right) = (ground.ask(&path)?, if is_ready(n) { 200 } else { 503 });
            ensure!(status == right, "{path}: {status}, not {right}");
        }
        assert_eq!(ground.ask(&ground.path("web-0"))?, 200);
        assert_eq!(ground.ask(&ground.path_of("web-0", address(ENDPOINTS)))?, 404);
        let counted = ground.counters().await?.since(&before);
        ensure!(counted.of("ready") > 600 && counted.of("unready") > 300, "the program did not answer: {counted:?}");
        Ok(())
    })
}

/// Where pods are probed.
const PROBED: u16 = 8080;

/// A ground where probes of the pods of `web` are answered in their stead.
fn with_probe(test: impl AsyncFn(&mut Ground) -> Result<()> + Send + Sync) -> Result<()> {
    for mode in Mode::PROGRAM {
        let differ = |spec: podlight_e2e::activator::ActivatorSpec| {
            spec.flag("xdp-probe", &format!("shop/web:{PROBED}/healthz?full=1"))
        };
        GroundSpec::new(mode).run_with(differ, &test)?;
    }
    Ok(())
}

#[test]
fn a_probe_of_a_pod_is_answered_in_its_stead_once_there_is_an_answer() -> Result<()> {
    with_probe(async |ground| {
        let stage = &ground.stage;
        stage.create_service(stage.service("web")).await?;
        for (n, (address, path)) in
            [IpAddr::from(SERVER), IpAddr::from(SERVER6)].into_iter().zip(["/healthz?full=1"; 2]).enumerate()
        {
            let to = SocketAddr::new(address, PROBED);
            // Nobody listens there, and nobody answers for a pod that there is not.
            ensure!(curl(&ground.pair, to, path).await.is_err(), "somebody answers at {to}");
            let pod = stage.create_pod(stage.pod_spec("web", &format!("web-{n}")), &running(address)).await?;
            let becomes = async |status: u16| {
                eventually(&format!("{to} answers {status}"), async || {
                    let answer = curl(&ground.pair, to, path).await?.0;
                    ensure!(answer == status, "it answers {answer}");
                    Ok(Some(()))
                })
                .await
            };
            becomes(503).await?;
            pod.ready().await?;
            becomes(200).await?;
            assert_eq!(curl(&ground.pair, to, "/other").await?.0, 404);
            pod.say(Kind::Draining).await?;
            becomes(503).await?;
            stage.delete_pod(&pod.name, 0).await?;
            eventually("nobody answers for a pod that has gone", async || {
                Ok(curl(&ground.pair, to, path).await.is_err().then_some(()))
            })
            .await?;
        }
        Ok(())
    })
}

#[test]
fn what_is_no_probe_passes_untouched() -> Result<()> {
    with_probe(async |ground| {
        ground.ready("web").await?;
        let _nginx = nginx_that_answers(&ground.pair.server, 8090, None).await?;
        for address in [IpAddr::from(SERVER), IpAddr::from(SERVER6)] {
            let answer = curl(&ground.pair, SocketAddr::new(address, 8090), &ground.path("web")).await?;
            assert_eq!(answer, (200, "ok".to_owned()));
        }
        // A megabyte at least each way, so that large segments are among it.
        let server = ground.pair.server.start("iperf3", &["--server"], None)?;
        eventually("iperf3 listens", async || Ok((ground.pair.server.sockets(5201, &["0A"])? > 0).then_some(())))
            .await?;
        for direction in ["--no-delay", "--reverse"] {
            let address = SERVER.to_string();
            let said =
                ground.pair.client.run("iperf3", &["--client", &address, "--bytes", "8M", "--json", direction]).await?;
            let said: serde_json::Value = serde_json::from_str(&said)?;
            let received = said["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
            // It stops counting before all has arrived.
            ensure!(received >= 1 << 20, "{received} bytes: {}", server.log_tail());
        }
        Ok(())
    })
}
