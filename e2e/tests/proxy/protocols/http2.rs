//! Many requests on one connection, on either side, and programs of somebody else's that speak both versions.

use anyhow::{Result, ensure};
use http::Version;
use podlight_e2e::backend::answers::sha256;
use podlight_e2e::proxy::client::{Connection, get};
use podlight_e2e::proxy::clients::{curl, h2load};

use super::{h2c, plain};

#[tokio::test]
async fn curl_gets_what_it_asks_for_over_http1_and_http2() -> Result<()> {
    let (stage, _web) = plain().await?;
    let (proxy, host) = (stage.proxy()?, stage.host("web"));
    for arguments in [&["--http1.1"] as &[&str], &["--http2-prior-knowledge"]] {
        let curled = curl(proxy, &host, "/a?b=c", arguments).await?;
        ensure!(curled.status == 200 && curled.output.contains("\"/a?b=c\""), "{curled:?}");
        let posted = [arguments, &["--data", "hello"]].concat();
        let curled = curl(proxy, &host, "/", &posted).await?;
        ensure!(curled.status == 200 && curled.output.contains(&sha256(b"hello")), "{curled:?}");
        let curled = curl(proxy, "nobody.example", "/", &[arguments, &["--include"]].concat()).await?;
        ensure!(curled.status == 404 && curled.output.to_lowercase().contains("podlight-error:"), "{curled:?}");
    }
    Ok(())
}

#[tokio::test]
async fn http2_carries_many_requests_at_once_to_a_pod_that_speaks_http1() -> Result<()> {
    let (stage, web) = plain().await?;
    let connection = Connection::http2(stage.proxy()?).await?;
    let asked: Vec<_> = (0..50).map(|_| connection.start(get(&stage.host("web"), "/gate"))).collect::<Result<_>>()?;
    web.app.wait_at_gate(50).await?;
    web.app.open_gate(true);
    for answer in asked {
        let answer = answer.await??;
        assert_eq!((answer.version, answer.seen()?.version.as_str()), (Version::HTTP_2, "HTTP/1.1"));
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_speaks_h2c_gets_requests_of_both_kinds_over_one_connection() -> Result<()> {
    let (stage, web) = h2c().await?;
    let before = web.app.connections();
    let connection = Connection::http2(stage.proxy()?).await?;
    let asked: Vec<_> = (0..20).map(|_| connection.start(get(&stage.host("web"), "/gate"))).collect::<Result<_>>()?;
    let one = podlight_e2e::proxy::client::start(stage.proxy()?, get(&stage.host("web"), "/gate"));
    web.app.wait_at_gate(21).await?;
    web.app.open_gate(true);
    for answer in asked.into_iter().chain([one]) {
        let seen = answer.await??.seen()?;
        assert_eq!((seen.version.as_str(), seen.authority.as_str()), ("HTTP/2.0", stage.host("web").as_str()));
    }
    // One a worker at most, and what was there before.
    ensure!(web.app.connections() <= before + 2, "{} connections", web.app.connections());
    Ok(())
}

#[tokio::test]
async fn h2load_loses_nothing() -> Result<()> {
    for (stage, _web) in [plain().await?, h2c().await?] {
        let said = h2load(stage.proxy()?, &stage.host("web"), 2000, 4, 16).await?;
        ensure!(said.contains("2000 succeeded, 0 failed, 0 errored"), "{said}");
        ensure!(said.contains("status codes: 2000 2xx"), "{said}");
    }
    Ok(())
}
