//! What is answered when the activator hangs, dies, may not load a program, or finds somebody else's.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podlight_e2e::activator::ActivatorSpec;
use podlight_e2e::eventually::eventually;
use podlight_e2e::net::ground::{Ground, GroundSpec, Mode};
use podlight_e2e::net::pair::DEVICE;

/// As short as the activator takes.
const TTL: Duration = Duration::from_secs(1);

fn with_ttl(mode: Mode, test: impl AsyncFnOnce(&mut Ground) -> Result<()> + Send) -> Result<()> {
    GroundSpec::new(mode).run_with(|spec| spec.flag("xdp-ttl", &format!("{}s", TTL.as_secs())), test)
}

/// Asks until nothing is ready any more. Fails when a probe that began later than the ttl is told so.
async fn no_false_200(ground: &Ground, since: Instant) -> Result<()> {
    let path = ground.path("web");
    eventually("nothing is ready", async || {
        let begun = Instant::now();
        // No connection, a reset and a connection that nobody serves are as good as 503.
        let ready = ground.ask_briefly(&path).is_some_and(|status| status == 200);
        ensure!(!ready || begun.duration_since(since) < TTL, "ready, {:?} after the end", begun.duration_since(since));
        Ok((!ready && since.elapsed() > TTL).then_some(()))
    })
    .await
}

#[test]
fn a_killed_activator_s_answers_are_gone_within_the_ttl() -> Result<()> {
    for mode in Mode::PROGRAM {
        with_ttl(mode, async |ground| {
            ground.ready("web").await?;
            let killed = Instant::now();
            ground.activator().kill();
            no_false_200(ground, killed).await?;
            for _ in 0..20 {
                ensure!(ground.ask_briefly(&ground.path("web")).is_none(), "somebody answers");
            }
            let shown = ground.pair.server.run("ip", &["-details", "link", "show", DEVICE]).await?;
            ensure!(!shown.contains("xdp"), "the program is still there: {shown}");
            // And again, as it was.
            ground.activator().start().await?;
            ground.until(&ground.path("web"), 503).await
        })?;
    }
    Ok(())
}

#[test]
fn an_activator_that_hangs_answers_nothing_after_the_ttl_and_answers_again_when_it_runs_on() -> Result<()> {
    for mode in Mode::PROGRAM {
        with_ttl(mode, async |ground| {
            ground.ready("web").await?;
            let paused = Instant::now();
            ground.activator().pause()?;
            no_false_200(ground, paused).await?;
            ground.activator().resume()?;
            ground.until(&ground.path("web"), 200).await
        })?;
    }
    Ok(())
}

#[test]
fn a_program_of_somebody_else_s_stays_and_the_activator_answers_itself_and_says_whose_it_is() -> Result<()> {
    for (theirs, ours) in [("xdpgeneric", Mode::Generic), ("xdpdrv", Mode::Native)] {
        let spec = GroundSpec { foreign: Some(theirs), serving: Mode::Userspace, ..GroundSpec::new(ours) };
        spec.run(async |ground| {
            ground.ready("web").await?;
            let shown = ground.pair.server.run("ip", &["-details", "link", "show", DEVICE]).await?;
            ensure!(shown.contains("xdp") && shown.contains("name pass"), "theirs has gone: {shown}");
            let log = ground.activator().log_text()?;
            ensure!(log.contains("WARN") && log.contains("pass"), "it does not say whose: {log}");
            let status = ground.status().await?["map"].take();
            ensure!(status["interfaces"][0]["why"].as_str().is_some_and(|why| why.contains("pass")), "{status}");
            assert_eq!(ground.counters().await?.sum(), 0);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn without_capabilities_the_activator_warns_and_gives_the_same_answers_itself() -> Result<()> {
    let differ = |spec: ActivatorSpec| spec.without("-bpf,-net_admin,-sys_admin,-perfmon");
    for mode in Mode::PROGRAM {
        GroundSpec { serving: Mode::Userspace, ..GroundSpec::new(mode) }.run_with(differ, async |ground| {
            ground.ready("web").await?;
            ground.unready("cold").await?;
            ground.until(&ground.path("none"), 404).await?;
            let log = ground.activator().log_text()?;
            let warnings: Vec<&str> =
                log.lines().filter(|line| line.contains("WARN") && line.contains("xdp")).collect();
            ensure!(warnings.len() == 1 && warnings[0].contains("CAP_BPF"), "{warnings:?}");
            let status = ground.status().await?["map"].take();
            ensure!(status.to_string().contains("CAP_BPF"), "{status}");
            assert_eq!(ground.counters().await?.sum(), 0);
            Ok(())
        })?;
    }
    Ok(())
}
