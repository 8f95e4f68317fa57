//! What becomes of headers between client and pod.

use anyhow::{Result, ensure};
use podlight_e2e::proxy::client::{Connection, ask, get, with};
use podlight_e2e::proxy::stage::Stage;

use super::{h2c, plain};

#[tokio::test]
async fn headers_of_one_hop_end_at_the_proxy_in_both_directions() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut asked = get(&stage.host("web"), "/");
    for (name, value) in [
        ("connection", "x-secret, keep-alive"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers, deflate"),
        ("x-kept", "yes"),
        ("cookie", "a=b"),
        ("authorization", "Bearer x"),
    ] {
        asked = with(asked, name, value);
    }
    let seen = ask(stage.proxy()?, asked).await?.seen()?;
    for gone in ["x-secret", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    ensure!(seen.header("te").is_none_or(|te| te == "trailers"), "{:?}", seen.header("te"));
    for (kept, value) in [("x-kept", "yes"), ("cookie", "a=b"), ("authorization", "Bearer x")] {
        assert_eq!(seen.header(kept).as_deref(), Some(value));
    }
    let answer = stage.get("web", "/hops").await?;
    assert_eq!(answer.header("x-kept"), "1");
    for gone in ["x-hop", "keep-alive", "proxy-connection"] {
        assert_eq!(answer.header(gone), "", "{gone}");
    }
    // `Connection` cannot take away what says whom a message is for.
    let seen =
        ask(stage.proxy()?, with(get(&stage.host("web"), "/"), "connection", "host, x-forwarded-for")).await?.seen()?;
    assert_eq!(seen.authority, stage.host("web"));
    Ok(())
}

#[tokio::test]
async fn a_pod_learns_who_asks_and_a_stranger_cannot_pretend() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut asked = get(&stage.host("web"), "/");
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "bank.example"),
        ("forwarded", "for=203.0.113.7;proto=https"),
    ] {
        asked = with(asked, name, value);
    }
    let seen = ask(stage.proxy()?, asked).await?.seen()?;
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("http"));
    let forwarded = seen.header("forwarded").unwrap_or_default();
    ensure!(!forwarded.contains("203.0.113.7") && !forwarded.contains("https"), "{forwarded}");
    Ok(())
}

#[tokio::test]
async fn what_a_trusted_proxy_says_of_its_client_is_kept_and_added_to() -> Result<()> {
    let trusting =
        Stage::standalone_with(|spec| spec.also("trust-forwarded", "127.0.0.0/8").also("trust-forwarded", "::1/128"));
    let stage = trusting.await?;
    stage.create_service(stage.service("web")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let asked = with(get(&stage.host("web"), "/"), "x-forwarded-for", "203.0.113.7");
    let seen = ask(stage.proxy()?, with(asked, "x-forwarded-proto", "https")).await?.seen()?;
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("203.0.113.7, 127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("https"));
    Ok(())
}

#[tokio::test]
async fn a_traceparent_is_passed_on_as_it_came_with_its_state() -> Result<()> {
    for (stage, _web) in [plain().await?, h2c().await?] {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let asked = with(with(get(&stage.host("web"), "/"), "traceparent", trace), "tracestate", "vendor=1");
        let seen = ask(stage.proxy()?, asked).await?.seen()?;
        assert_eq!(seen.header("traceparent").as_deref(), Some(trace));
        assert_eq!(seen.header("tracestate").as_deref(), Some("vendor=1"));
        // None is made up.
        assert_eq!(stage.get("web", "/").await?.seen()?.header("traceparent"), None);
    }
    Ok(())
}

#[tokio::test]
async fn many_headers_cookies_and_repeated_ones_pass_in_order() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut connection = Connection::http2(stage.proxy()?).await?;
    let mut asked = get(&stage.host("web"), "/");
    for n in 0..40 {
        asked = with(asked, "x-list", &n.to_string());
    }
    asked = with(with(asked, "cookie", "a=1"), "cookie", "b=2");
    let seen = connection.ask(asked).await?.seen()?;
    let list: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    assert_eq!(seen.header("x-list"), Some(list.join(", ")));
    assert_eq!(seen.header("cookie").as_deref(), Some("a=1; b=2"), "one Cookie over HTTP/1.1 (RFC 9113 §8.2.3)");
    Ok(())
}
