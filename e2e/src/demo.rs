//! `make demo`: the whole way of an event on one machine, told as it happens. An activator in standalone mode, an app and its
//! sidecar run as real processes; every number printed was measured, and every step that does not come out as told fails the demo.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use podlight_proto::{EVENT_MEDIA_TYPE, EVENTS_PATH, Kind};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::activator::Activator;
use crate::api::Target;
use crate::eventually::eventually;
use crate::follow::{Change, Followed, follow, told_by_all};
use crate::sender::{Letter, Reply, Sender};
use crate::sidecar::Sidecar;
use crate::{http_client, https_client};

pub mod app;
mod timeline;
mod world;

use app::AppProcess;
use timeline::Timeline;
use world::{APP, QUIET, THIEF, World};

/// How long the app takes to start.
const APP_STARTS_IN: Duration = Duration::from_millis(1500);

/// How long the one without a sidecar takes: in the middle between two probes, so that it is found as late as on average.
const QUIET_STARTS_IN: Duration = Duration::from_millis(1500);

/// The shortest period of a kubelet's probes.
const KUBELET_PERIOD: Duration = Duration::from_secs(1);

/// Tells the story, then what to look at further; stays until Ctrl-C unless `exit`.
///
/// # Errors
/// When a step does not come out as told.
pub async fn run(exit: bool) -> Result<()> {
    let mut timeline = Timeline::start();
    timeline.heading("Podlight: a pod is ready the moment it is, and gone the moment it starts to leave")?;
    let world = World::new()?;
    timeline.note(&format!("Files of this demo, logs included: {}", world.folder().display()))?;

    timeline.heading("1. An activator, with manifests in place of a cluster")?;
    let activator = world.activator().await?;
    timeline.now(&format!(
        "the activator is ready at {} (TLS; it read Pods, a Service and ServiceAccounts)",
        activator.url()
    ))?;
    let served = readiness_map(&activator).await?;
    timeline.now(&format!("health checks of web are answered at {}, by {served}", world.health_check()))?;
    let ca_pem = std::fs::read_to_string(activator.ca_file())?;
    let token = world.token(&APP)?;
    timeline.now("a token for the pod web-0, as the kubelet would mount it: podlight-activator token")?;
    let followed = Followed { url: activator.url(), ca_pem: ca_pem.clone(), token: token.clone(), address: None };
    let mut story = Story { timeline, changes: follow(vec![followed]).await?, ca_pem, token };

    let (app, sidecar) = story.start(&world, &activator).await?;
    story.without_push(&world, &activator).await?;
    story.flap(&app).await?;
    story.forge(&world, &activator).await?;
    story.drain(&world, &sidecar).await?;
    story.restart(&sidecar).await?;

    let mut timeline = story.timeline;
    timeline.heading("Look further")?;
    for (what, command) in world.commands(&activator, &sidecar, &app, &story.token)? {
        timeline.command(what, &command)?;
    }
    if exit {
        return timeline.note("Done: every step came out as told.");
    }
    timeline.note("Everything keeps running until Ctrl-C.")?;
    wait_for_end(&activator, &sidecar, &app).await
}

/// The steps, with what they are seen by.
struct Story {
    timeline: Timeline,
    changes: UnboundedReceiver<Change>,
    ca_pem: String,
    token: String,
}

impl Story {
    /// The app starts beside its sidecar, while a request waits for it.
    async fn start(&mut self, world: &World, activator: &Activator) -> Result<(AppProcess, Sidecar)> {
        self.timeline.heading("2. A request comes before its pod: an app starts, its sidecar beside it")?;
        let (host, asked) = (format!("{}.{}", world::SERVICE, world::NAMESPACE), Instant::now());
        self.timeline.at(asked, &format!("GET http://{host}/ through the activator, which holds it"))?;
        let request = tokio::spawn(request(activator.proxy_address()?, host));
        let app = AppProcess::start(world.folder(), world.port(&APP), APP_STARTS_IN)?;
        let started = Instant::now();
        let sidecar = world.sidecar(activator, app.port(), &self.token)?.start().await?;
        self.timeline.at(started, &format!("the sidecar starts; the app will need {APP_STARTS_IN:.1?}"))?;
        let told = self.told("not-ready").await?;
        self.timeline.after(
            started,
            told.at,
            "the table has web-0 not-ready by the sidecar's word: token checked, key bound",
        )?;

        let told = self.told("ready").await?;
        let accepts = self.timeline.instant(app.accepting_since_us().await?);
        self.timeline.at(accepts, "the app accepts connections")?;
        self.timeline.after(accepts, told.at, "the table has web-0 ready by the sidecar's word; the manifests, as a slow kubelet would, still say not ready")?;
        self.timeline.after(accepts, request.await??, "the request is answered, straight by the pod")?;
        self.timeline.after(
            accepts,
            checked(world, 200).await?,
            "a health check of web, asked every 10 ms, says 200",
        )?;
        Ok((app, sidecar))
    }

    /// The same without a sidecar: somebody probes once a second and tells the API server.
    async fn without_push(&mut self, world: &World, activator: &Activator) -> Result<()> {
        self.timeline.heading("   The same with push off: the demo plays a kubelet that probes once a second")?;
        let host = format!("{}.{}", QUIET.name.trim_end_matches("-0"), world::NAMESPACE);
        self.timeline.now(&format!("GET http://{host}/ through the activator, which holds it"))?;
        let request = tokio::spawn(request(activator.proxy_address()?, host));
        let app = AppProcess::start(world.folder(), world.port(&QUIET), QUIET_STARTS_IN)?;
        let mut probes = tokio::time::interval(KUBELET_PERIOD);
        let noticed = loop {
            probes.tick().await;
            if app.is_ready().await {
                break Instant::now();
            }
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        world.write(&QUIET, Some(since))?;
        let answered = request.await??;
        let accepts = self.timeline.instant(app.accepting_since_us().await?);
        self.timeline.at(accepts, "the app accepts connections")?;
        self.timeline.after(accepts, noticed, "the next probe finds it ready; the manifest says so")?;
        self.timeline.after(accepts, answered, "the request is answered")
    }

    /// The app fails its probe for a while.
    async fn flap(&mut self, app: &AppProcess) -> Result<()> {
        self.timeline.heading("3. The app flaps")?;
        let fails = self.timeline.instant(app.set_ready(false).await?);
        self.timeline.at(fails, "the app answers its readiness probe with 503 from now on")?;
        let told = self.told("not-ready").await?;
        let why = "the table has web-0 not-ready (asked once a second while well, and three failures count)";
        self.timeline.after(fails, told.at, why)?;
        let recovers = self.timeline.instant(app.set_ready(true).await?);
        self.timeline.at(recovers, "the app answers 200 again")?;
        let told = self.told("ready").await?;
        self.timeline.after(recovers, told.at, "the table has web-0 ready (asked every 100 ms while it is not)")
    }

    /// Somebody else tells the activator that the pod leaves.
    async fn forge(&mut self, world: &World, activator: &Activator) -> Result<()> {
        self.timeline.heading("4. Somebody else claims that web-0 is leaving")?;
        let forger = Sender::for_pod(&world.pod(&APP)?)?;
        let event = forger.event(Kind::Draining).sign();
        self.refused(activator, event, None, 401, "signed with a key of the forger's own, without a token").await?;
        let token = world.token(&THIEF)?;
        let event = forger.event(Kind::Draining).token(&token).sign();
        self.refused(activator, event, Some(&token), 403, "the same with the valid token of another pod, thief-0")
            .await?;
        let state = self.state_in_table(activator).await?;
        ensure!(state == "ready", "the table has web-0 {state} after the forged events");
        self.timeline.now("the table still has web-0 ready")
    }

    /// The pod is deleted: preStop runs.
    async fn drain(&mut self, world: &World, sidecar: &Sidecar) -> Result<()> {
        self.timeline.heading("5. The pod is to go: its preStop hook runs `podlight-sidecar drain`")?;
        let prestop = Instant::now();
        let (drained, told, checked) = tokio::join!(sidecar.drain("0s"), self.told("draining"), checked(world, 503));
        let (status, said) = drained?;
        ensure!(status.success(), "the drain ended with {status}: {said}");
        let said = said.lines().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let said = said.context("the drain says nothing")?;
        ensure!(said["complete"] == true, "the drain was not acknowledged: {said}");
        let acknowledged = said["ms"].as_u64().context("the drain does not say how long it took")?;
        self.timeline.at(prestop, "preStop starts")?;
        self.timeline.after(prestop, told?.at, "the table has web-0 draining: no new requests")?;
        self.timeline.after(prestop, checked?, "a health check of web, asked every 10 ms, says 503")?;
        let within = acknowledged + 1;
        let text = format!("the hook ends: within {within} ms of its request every replica had acknowledged");
        self.timeline.after(prestop, Instant::now(), &text)
    }

    /// It was only the sidecar's container that was restarted.
    async fn restart(&mut self, sidecar: &Sidecar) -> Result<()> {
        self.timeline.heading("6. Only a restart: the sidecar comes back with a new key and a newer boot")?;
        sidecar.kill();
        let restarted = Instant::now();
        sidecar.start().await?;
        self.timeline.at(restarted, "the sidecar starts again")?;
        let told = self.told("ready").await?;
        self.timeline.after(restarted, told.at, "the table has web-0 ready again")
    }

    /// Waits until the activator tells this state of the pod.
    async fn told(&mut self, state: &str) -> Result<Change> {
        let wanted = |change: &Change| change.pod == APP.name && change.state == state && change.source == "pushed";
        let told = told_by_all(&mut self.changes, 1, state, wanted).await?;
        told.into_iter().next().context("no replica")
    }

    async fn refused(
        &mut self,
        activator: &Activator,
        event: Letter,
        token: Option<&str>,
        status: u16,
        what: &str,
    ) -> Result<()> {
        self.timeline.now(what)?;
        let request = https_client(&self.ca_pem)?.post(format!("{}{EVENTS_PATH}", activator.url()));
        let request = request.header(http::header::CONTENT_TYPE, EVENT_MEDIA_TYPE).body(event.body);
        let request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
        let reply = Reply::read(request.send().await?).await?;
        ensure!(reply.status == status, "answered {} instead of {status}: {}", reply.status, reply.body);
        let problem = reply.problem()?;
        self.timeline.quote(&format!("{status} {}: {}", problem.err, problem.description))
    }

    async fn state_in_table(&self, activator: &Activator) -> Result<String> {
        let url = format!("{}/v1/targets/{}/{}", activator.url(), world::NAMESPACE, world::SERVICE);
        let response = https_client(&self.ca_pem)?.get(url).bearer_auth(&self.token).send().await?;
        ensure!(response.status() == 200, "{}", response.status());
        #[derive(serde::Deserialize)]
        struct Targets {
            targets: Vec<Target>,
        }
        let Targets { targets } = serde_json::from_str(&response.text().await?)?;
        let mut endpoints = targets.into_iter().flat_map(|target| target.endpoints);
        let endpoint = endpoints.find(|endpoint| endpoint.pod.as_ref().is_some_and(|pod| pod.name == APP.name));
        Ok(endpoint.context("the table does not have web-0")?.state)
    }
}

/// Who answers health checks, and why.
async fn readiness_map(activator: &Activator) -> Result<String> {
    let told: serde_json::Value = serde_json::from_str(&activator.admin("/status").await?.body)?;
    let map = &told["state"]["xdp"];
    let serving = map["serving"].as_str().context("the activator has no readiness map")?;
    let why = map["why"].as_str().or_else(|| map["interfaces"][0]["why"].as_str());
    let who = if serving == "userspace" { "its own process (userspace)" } else { "an XDP program" };
    Ok(match (serving, why) {
        ("userspace", Some(why)) => format!("{who}: {why}"),
        ("userspace", None) => who.to_owned(),
        (mode, _) => format!("{who} ({mode}), before a socket exists"),
    })
}

/// Asks as a load balancer would until the answer is this one. Returns when it came.
async fn checked(world: &World, status: u16) -> Result<Instant> {
    eventually(&format!("the health check says {status}"), async || {
        // A connection for each, as probes have it.
        let answer = http_client()?.get(world.health_check()).send().await?;
        Ok((answer.status() == status).then(Instant::now))
    })
    .await
}

/// Sends one request through an activator; returns when its answer came.
async fn request(proxy: SocketAddr, host: String) -> Result<Instant> {
    let response = http_client()?.get(format!("http://{proxy}/")).header(http::header::HOST, host).send().await?;
    let (status, body) = (response.status(), response.text().await?);
    ensure!(status == 200, "the request was answered {status}: {body}");
    Ok(Instant::now())
}

/// Returns at Ctrl-C or SIGTERM.
async fn wait_for_end(activator: &Activator, sidecar: &Sidecar, app: &AppProcess) -> Result<()> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut looks = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            _ = terminated.recv() => return Ok(()),
            _ = looks.tick() => {
                ensure!(activator.is_running(), "the activator has ended; its log:\n{}", activator.log_tail());
                ensure!(sidecar.is_running(), "the sidecar has ended; its log:\n{}", sidecar.log_tail());
                ensure!(app.is_running(), "the app has ended");
            }
        }
    }
}
