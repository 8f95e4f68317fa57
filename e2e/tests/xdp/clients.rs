//! Every client gets the same answers from the program as from the activator itself: over both families and MTUs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use podlight_e2e::eventually::eventually;
use podlight_e2e::net::ask::{curl, exchange, kubelet, request, status, wrk};
use podlight_e2e::net::ground::{Ground, GroundSpec, Mode, PORT};
use podlight_e2e::net::pair::CLIENT;
use podlight_e2e::net::servers::{HaProxy, nginx_that_asks};
use podlight_proto::Kind;

const MODES: [Mode; 3] = [Mode::Userspace, Mode::Generic, Mode::Native];

const MTUS: [u32; 2] = [1500, 9000];

/// Runs a test in every mode with every MTU.
fn everywhere(test: impl AsyncFn(&mut Ground) -> Result<()> + Send + Sync) -> Result<()> {
    for mode in MODES {
        for mtu in MTUS {
            GroundSpec { mtu, ..GroundSpec::new(mode) }.run(&test)?;
        }
    }
    Ok(())
}

#[test]
fn curl_gets_200_for_ready_503_for_not_ready_and_404_for_what_there_is_not() -> Result<()> {
    everywhere(async |ground| {
        let ready = ground.ready("web").await?;
        let unready = ground.unready("cold").await?;
        let expected = [
            (ground.path("web"), 200),
            (ground.path_of("web", ready.address), 200),
            (ground.path("cold"), 503),
            (ground.path_of("cold", unready.address), 503),
            (ground.path("nothing"), 404),
            (ground.path_of("web", unready.address), 404),
            (format!("{}/", ground.path("web")), 404),
            ("/ready".to_owned(), 404),
            ("/".to_owned(), 404),
        ];
        for server in ground.servers() {
            for (path, status) in &expected {
                let answer = curl(&ground.pair, server, path).await.with_context(|| path.clone())?;
                ensure!(answer.0 == *status, "{server} {path}: {answer:?}, expected {status}");
            }
        }
        Ok(())
    })
}

#[test]
fn the_kubelet_s_prober_finds_success_and_failure() -> Result<()> {
    everywhere(async |ground| {
        ground.ready("web").await?;
        ground.unready("cold").await?;
        for server in ground.servers() {
            let seen = kubelet(&ground.pair, server, &ground.path("web"), 200).await?;
            assert_eq!(seen.verdicts, BTreeMap::from([("success".to_owned(), 200)]), "{:?}", seen.outputs);
            let seen = kubelet(&ground.pair, server, &ground.path("cold"), 50).await?;
            let failed = BTreeMap::from([("HTTP probe failed with statuscode: 503".to_owned(), 50)]);
            assert_eq!((seen.verdicts.get("failure"), seen.outputs), (Some(&50), failed));
        }
        Ok(())
    })
}

#[test]
fn wrk_gets_nothing_but_200_and_leaves_nothing_behind() -> Result<()> {
    everywhere(async |ground| {
        ground.ready("web").await?;
        // All but LISTEN.
        let states = ["01", "02", "03", "04", "05", "06", "07", "08", "09", "0B", "0C"];
        // The activator may have served some itself before there were answers.
        let before = ground.pair.server.sockets(PORT, &states)?;
        for server in ground.servers() {
            let seen = wrk(&ground.pair, server, &ground.path("web"), 16, 1, None).await?;
            ensure!(seen.answers > 100 && seen.refusals == 0 && seen.errors == 0, "{seen:?}");
        }
        if ground.spec.mode != Mode::Userspace {
            ensure!(ground.pair.server.sockets(PORT, &states)? <= before, "sockets are left");
        }
        Ok(())
    })
}

#[test]
fn load_balancers_follow_ready_draining_and_ready_again() -> Result<()> {
    everywhere(async |ground| {
        let pod = ground.ready("web").await?;
        let (client, path) = (&ground.pair.client, ground.path("web"));
        let haproxy = HaProxy::start(client, 8101, ground.server(), &path).await?;
        let _nginx = nginx_that_asks(client, 8100, ground.servers()[1], &path).await?;
        let through = SocketAddr::from((CLIENT, 8100));
        haproxy.wait(client, "UP", "L7OK", "200").await?;
        assert_eq!(curl(&ground.pair, through, "/").await?.0, 200);
        pod.say(Kind::NotReady).await?;
        haproxy.wait(client, "DOWN", "L7STS", "503").await?;
        assert_eq!(curl(&ground.pair, through, "/").await?.0, 503);
        pod.say(Kind::Ready).await?;
        haproxy.wait(client, "UP", "L7OK", "200").await?;
        assert_eq!(curl(&ground.pair, through, "/").await?.0, 200);
        Ok(())
    })
}

#[test]
fn once_a_drain_is_in_the_map_no_probe_finds_it_ready_again() -> Result<()> {
    everywhere(async |ground| {
        let pod = ground.ready("web").await?;
        let (path, address) = (ground.path("web"), ground.path_of("web", pod.address));
        pod.say(Kind::Draining).await?;
        eventually("the drain is answered", async || Ok((ground.ask(&path)? == 503).then_some(()))).await?;
        for _ in 0..100 {
            for path in [&path, &address] {
                for server in ground.servers() {
                    let answer = status(&exchange(&ground.pair, server, &[&request(path)])?)?;
                    assert_eq!(answer, 503, "{server} {path}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn offloads_change_no_answer() -> Result<()> {
    for mode in Mode::PROGRAM {
        GroundSpec::new(mode).run(async |ground| {
            ground.ready("web").await?;
            ground.unready("cold").await?;
            for switches in [["tx", "off"], ["gso", "off"], ["gro", "on"], ["gro", "off"], ["tx", "on"]] {
                ground.pair.offload(&switches).await?;
                for server in ground.servers() {
                    for (service, right) in [("web", 200), ("cold", 503)] {
                        let answer = exchange(&ground.pair, server, &[&request(&ground.path(service))])?;
                        assert_eq!(status(&answer)?, right, "{switches:?}");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}
