//! Events may come twice, late, out of order and to any replica: what holds is (boot, seq), and a drain.

use anyhow::{Context, Result, bail};
use podlight_e2e::scene::Web;
use podlight_e2e::sender::{Message, Reply, now_ms};
use podlight_proto::{Boot, ErrorCode, Kind, Outcome, Sequence};

use crate::scene;

#[tokio::test]
async fn a_replay_changes_nothing_at_the_same_and_at_another_replica() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let [first, second] = [0, 1].map(|n| scene.activators[n].url());
    let hello = web.sender.event(Kind::NotReady).token(&web.token).sign();
    let ready = web.sender.event(Kind::Ready).sign();
    assert_eq!(hello.post(&first).await?.outcome()?, Outcome::Applied);
    assert_eq!(ready.post(&first).await?.outcome()?, Outcome::Applied);
    let before = shop.endpoint(0, "web-1").await?;

    assert_eq!(ready.post(&first).await?.outcome()?, Outcome::Duplicate);
    assert_eq!(hello.post(&first).await?.outcome()?, Outcome::Superseded);
    assert_eq!(shop.endpoint(0, "web-1").await?, before);

    // Elsewhere the captured event without a token is nobody's.
    ready.post(&second).await?.refused(401, ErrorCode::AuthenticationFailed)?;
    // With the token it is the pod's own word, once.
    assert_eq!(hello.post(&second).await?.outcome()?, Outcome::Applied);
    assert_eq!(ready.post(&second).await?.outcome()?, Outcome::Applied);
    for letter in [&hello, &ready, &hello] {
        assert_ne!(letter.post(&second).await?.outcome()?, Outcome::Applied);
    }
    assert_eq!(shop.endpoint(1, "web-1").await?, before, "replicas agree");

    // What was true once is not true again.
    web.sender.tell(&first, Kind::NotReady).await?;
    assert_eq!(ready.post(&first).await?.outcome()?, Outcome::Superseded);
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "not-ready pushed");
    Ok(())
}

#[tokio::test]
async fn a_retry_signed_anew_is_the_same_event() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    let again = |offset| web.sender.event(Kind::Ready).order(web.sender.boot(), seq(5)).issued_at_offset(offset).sign();
    assert_eq!(again(-2).post(&base).await?.outcome()?, Outcome::Applied);
    assert_eq!(again(0).post(&base).await?.outcome()?, Outcome::Duplicate);
    Ok(())
}

#[tokio::test]
async fn a_drain_beats_a_late_ready() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    let late = web.sender.event(Kind::Ready).sign();
    assert_eq!(web.sender.tell(&base, Kind::Draining).await?.result, Outcome::Applied);
    assert_eq!(late.post(&base).await?.outcome()?, Outcome::Superseded);
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "draining pushed");
    // Final for its boot, whatever that boot says later.
    for kind in [Kind::Ready, Kind::NotReady, Kind::Heartbeat] {
        web.sender.tell(&base, kind).await?;
        assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "draining pushed", "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn a_drain_that_comes_late_still_drains() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    let drain = web.sender.event(Kind::Draining).sign();
    web.sender.tell(&base, Kind::Ready).await?;
    shop.wait(0, "web-1", "ready pushed").await?;
    drain.post(&base).await?.accepted()?;
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "draining pushed");
    Ok(())
}

#[tokio::test]
async fn a_newer_boot_is_ready_again_after_a_drain() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    web.sender.tell(&base, Kind::Draining).await?;

    let restarted = web.sender.restarted()?;
    let no_token = restarted.event(Kind::Ready).sign().post(&base).await?;
    no_token.refused(401, ErrorCode::AuthenticationFailed)?;
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "draining pushed");
    assert_eq!(restarted.introduce(&base, &web.token).await?.result, Outcome::Applied);
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "not-ready pushed");
    restarted.tell(&base, Kind::Ready).await?;
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "ready pushed");

    // The one before is heard no more, and told which boot holds when it brings the token.
    web.sender.event(Kind::Ready).sign().post(&base).await?.refused(401, ErrorCode::AuthenticationFailed)?;
    let reply = web.sender.event(Kind::Draining).token(&web.token).sign().post(&base).await?.accepted()?;
    assert_eq!((reply.result, reply.boot), (Outcome::Superseded, restarted.boot()));
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "ready pushed");
    Ok(())
}

#[tokio::test]
async fn a_new_key_needs_a_newer_boot_and_the_same_key_does_not_need_a_token_for_one() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    web.sender.tell(&base, Kind::Ready).await?;

    let impostor = web.sender.impostor()?;
    let reply = impostor.event(Kind::NotReady).token(&web.token).sign().post(&base).await?.accepted()?;
    assert_eq!((reply.result, reply.boot), (Outcome::Superseded, web.sender.boot()));
    // A clock set back between two starts: it takes the boot that holds plus one.
    let adopted = impostor.event(Kind::NotReady).order(reply.boot.next(), seq(1)).token(&web.token).sign();
    assert_eq!(adopted.post(&base).await?.outcome()?, Outcome::Applied);
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "not-ready pushed");

    let next = reply.boot.next().next();
    let same_key = impostor.event(Kind::Ready).order(next, seq(1)).sign().post(&base).await?.accepted()?;
    assert_eq!((same_key.result, same_key.boot), (Outcome::Applied, next));
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "ready pushed");
    Ok(())
}

#[tokio::test]
async fn flaps_within_a_second_are_all_real() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    for (kind, verdict) in [Kind::Ready, Kind::NotReady]
        .into_iter()
        .cycle()
        .take(10)
        .zip(["ready pushed", "not-ready pushed"].into_iter().cycle())
    {
        assert_eq!(web.sender.tell(&base, kind).await?.result, Outcome::Applied);
        assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), verdict);
    }
    Ok(())
}

#[tokio::test]
async fn clocks_may_differ_by_29_seconds_either_way_and_not_by_31() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    for offset in [-29, 29] {
        let reply = within_one_second(&base, || web.sender.event(Kind::Heartbeat).issued_at_offset(offset)).await?;
        assert_eq!(reply.outcome()?, Outcome::Applied, "{offset}");
    }
    let before = shop.endpoint(0, "web-1").await?;
    for offset in [-31, 31] {
        let reply = within_one_second(&base, || web.sender.event(Kind::Ready).issued_at_offset(offset)).await?;
        let problem = reply.refused(400, ErrorCode::InvalidRequest)?;
        assert!(problem.description.contains("iat"), "{problem:?}");
    }
    assert_eq!(shop.endpoint(0, "web-1").await?, before);
    Ok(())
}

#[tokio::test]
async fn a_boot_a_day_ahead_would_lock_the_pod_out() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    let day = 24 * 60 * 60 * 1000;
    let hello = |web: &Web, boot| -> Result<_> {
        Ok(web.sender.event(Kind::NotReady).order(Boot::try_from(boot)?, seq(1)).token(&web.token).sign())
    };
    hello(&web, now_ms() + day + 60_000)?.post(&base).await?.refused(400, ErrorCode::InvalidRequest)?;
    assert_eq!(hello(&web, now_ms() + day - 60_000)?.post(&base).await?.outcome()?, Outcome::Applied);
    Ok(())
}

/// Posts an event so that sender and receiver read the same second, as far as one can tell: another try otherwise.
async fn within_one_second<'a>(base: &str, message: impl Fn() -> Message<'a>) -> Result<Reply> {
    for _ in 0..20 {
        let second = now_ms() / 1000;
        let reply = message().sign().post(base).await?;
        if now_ms() / 1000 == second {
            return Ok(reply);
        }
    }
    bail!("no request takes less than a second")
}

fn seq(n: u64) -> Sequence {
    Sequence::try_from(n).expect("in range")
}
