//! More than there should be of everything, over loopback only: forged tokens, idle connections, readers that do not read.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use futures::{StreamExt, TryStreamExt, stream};
use podlight_e2e::control_plane::{ServiceSpec, SliceSpec};
use podlight_e2e::eventually::eventually;
use podlight_e2e::scene::{Scene, Web};
use podlight_proto::Kind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const FORGED: usize = 50_000;
const IN_FLIGHT: usize = 64;
const NEWCOMERS: usize = 10;
const IDLE: usize = 5_000;
/// Of 1 000 endpoints, some 150 KB of JSON, each: more together than a socket buffers.
const SLICES: usize = 40;

#[tokio::test]
async fn fifty_thousand_garbage_tokens_and_unknown_kids_cost_no_review_and_one_key_fetch_a_minute() -> Result<()> {
    let scene = Scene::start(0).await?;
    let wide = "1000000:1000000";
    let activator = scene.activator().flag("rate", wide).flag("source-rate", wide).flag("replica", "a").start().await?;
    let base = activator.url();
    let shop = scene.shop().await?;
    let victim = shop.web("web-0").await?;
    let mut newcomers = Vec::new();
    for n in 1..=NEWCOMERS {
        newcomers.push(shop.web(&format!("web-{n}")).await?);
    }
    let (reviews, fetches) = (scene.control_plane.token_reviews()?, scene.control_plane.jwks_requests()?);
    let begun = Instant::now();
    let forge = Forge::new(&victim)?;
    let flood = stream::iter(0..FORGED).map(|n| {
        let (base, forge, victim) = (&base, &forge, &victim);
        async move {
            let letter = victim.sender.event(Kind::Draining).token(&forge.token(n)).sign();
            let reply = letter.post(base).await?;
            ensure!(reply.status == 401, "{n}: {reply:?}");
            Ok(())
        }
    });
    let flood = flood.buffer_unordered(IN_FLIGHT).try_for_each(|()| async { Ok(()) });
    let welcome = async {
        for web in &newcomers {
            web.sender.introduce(&base, &web.token).await?;
            web.sender.tell(&base, Kind::Ready).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::try_join!(flood, welcome)?;
    let minutes = begun.elapsed().as_secs() / 60;
    assert_eq!(scene.control_plane.token_reviews()? - reviews, NEWCOMERS as u64, "one a newcomer");
    let fetched = scene.control_plane.jwks_requests()? - fetches;
    assert!(fetched <= 1 + minutes, "{fetched} in {minutes} min");
    let reader = scene.reader_of(&activator)?;
    reader.wait_verdict(&shop.namespace, "web", "web-0", "not-ready observed").await?;
    for n in 1..=NEWCOMERS {
        reader.wait_verdict(&shop.namespace, "web", &format!("web-{n}"), "ready pushed").await?;
    }
    Ok(())
}

/// Makes tokens that are as near to a true one as a stranger can come.
struct Forge {
    header: String,
    claims: Value,
    signature: String,
}

impl Forge {
    fn new(victim: &Web) -> Result<Self> {
        let parts: Vec<&str> = victim.token.split('.').collect();
        let [header, claims, signature] = parts.as_slice() else { anyhow::bail!("not a JWS") };
        let claims = serde_json::from_slice(&BASE64URL.decode(claims)?)?;
        Ok(Self { header: (*header).to_owned(), claims, signature: (*signature).to_owned() })
    }

    fn token(&self, n: usize) -> String {
        let mut claims = self.claims.clone();
        claims["jti"] = json!(n.to_string());
        let claims = BASE64URL.encode(claims.to_string());
        let header = |header: Value| BASE64URL.encode(header.to_string());
        let signature = &self.signature;
        match n % 5 {
            0 => format!("opaque-{n}"),
            1 => format!("{}.{claims}.{signature}", header(json!({ "alg": "RS256", "kid": format!("unknown-{n}") }))),
            2 => format!("{}.{claims}.{signature}", self.header),
            3 => format!("{}.{claims}.", header(json!({ "alg": "none" }))),
            _ => format!("{}.{}.{}", BASE64URL.encode(n.to_string()), BASE64URL.encode("{}"), BASE64URL.encode("x")),
        }
    }
}

#[tokio::test]
async fn five_thousand_idle_connections_keep_nobody_out() -> Result<()> {
    allow_files()?;
    let scene = Scene::start(0).await?;
    let shop = scene.shop().await?;
    // Room for all of them, and for a fifth.
    for (name, most) in [("roomy", "20000"), ("tight", "1000")] {
        let activator = scene
            .activator()
            .flag("replica", name)
            .flag("max-connections", most)
            .flag("max-connections-per-source", most)
            .start()
            .await?;
        let web = shop.web(name).await?;
        web.sender.introduce(&activator.url(), &web.token).await?;
        let address = SocketAddr::from(([127, 0, 0, 1], activator.port()));
        let connect = stream::iter(0..IDLE).map(|_| TcpStream::connect(address)).buffer_unordered(IN_FLIGHT);
        let idle: Vec<TcpStream> = connect.try_collect().await?;
        let begun = Instant::now();
        let newcomer = shop.web(&format!("{name}-newcomer")).await?;
        newcomer.sender.introduce(&activator.url(), &newcomer.token).await?;
        newcomer.sender.tell(&activator.url(), Kind::Ready).await?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", begun.elapsed());
        let open = activator.metrics().await?.sum("podlight_connections", &[("listener", "events")]);
        if name == "tight" {
            ensure!(open <= 1000.0, "{open}");
            ensure!(activator.metrics().await?.sum("podlight_connections_evicted_total", &[]) >= 4000.0, "{open}");
        } else {
            ensure!(open >= 5000.0, "{open}");
        }
        drop(idle);
        eventually("they are gone", async || {
            let open = activator.metrics().await?.sum("podlight_connections", &[("listener", "events")]);
            Ok((open < 100.0).then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_off() -> Result<()> {
    let scene = Scene::start(1).await?;
    let shop = scene.shop().await?;
    let (activator, namespace) = (&scene.activators[0], &shop.namespace);
    scene.control_plane.create_service(ServiceSpec::new(namespace, "bare").port("http", 80, "8080")).await?;
    for slice in 0..SLICES {
        let mut spec = SliceSpec::new(namespace, &format!("bare-{slice}"), "bare").port("http", 8080);
        for n in 0..1000 {
            spec = spec.endpoint(&format!("10.{}.{}.{}", 100 + slice, n / 250, 1 + n % 250), true, true, false);
        }
        scene.control_plane.create_endpoint_slice(spec).await?;
    }
    let reader = scene.reader_of(activator)?;
    eventually("the large Service is there", async || {
        Ok((reader.endpoints(namespace, "bare").await?.len() == SLICES * 1000).then_some(()))
    })
    .await?;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stalled = socket.connect(SocketAddr::from(([127, 0, 0, 1], activator.port()))).await?;
    let token = scene.reader_token();
    let request = format!("GET /v1/watch HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n");
    stalled.write_all(request.as_bytes()).await?;
    let mut first = [0; 64];
    stalled.read_exact(&mut first).await?;
    ensure!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first));
    // One that reads hears everything meanwhile.
    let mut watch = reader.watch(None).await?;
    watch.find(|event| event.kind == "synced").await?;
    eventually("the one that does not is cut off", async || {
        let metrics = activator.metrics().await?;
        let cut = metrics.sum("podlight_watch_readers_cut_total", &[]) >= 1.0
            || metrics.sum("podlight_request_timeouts_total", &[("stage", "write")]) >= 1.0;
        Ok((cut && metrics.sum("podlight_watch_readers", &[]) == 1.0).then_some(()))
    })
    .await?;
    let web = shop.web("web-1").await?;
    web.sender.introduce(&activator.url(), &web.token).await?;
    watch.find(|event| event.data["endpoint"]["pod"]["name"] == json!("web-1")).await?;
    // What it had not read is not all there.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), stalled.read_to_end(&mut rest)).await;
    ended.context("its connection is still open")?.ok();
    let complete = String::from_utf8_lossy(&rest).contains("event: synced");
    ensure!(!complete, "it was not slow enough: the case proves nothing");
    Ok(())
}

/// As many open files as this process may have.
fn allow_files() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let enough = maximum.is_none_or(|maximum| maximum >= 2 * IDLE as u64);
    ensure!(enough, "{IDLE} connections need more open files than {maximum:?}");
    Ok(())
}
