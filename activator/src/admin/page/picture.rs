//! What the status page shows, at one moment. Everything in it is bounded, whatever annotations say: so many targets, so
//! many endpoints, hosts and faults of each, so many characters of each text; what is left out is counted.

use std::fmt::{self, Display, Write};
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

use super::lag::{self, Lag};
use crate::admin::Readiness;
use crate::proxy::route::{Listed, Routes, Taker};
use crate::proxy::status::TargetView;
use crate::proxy::target::settings::{ScaleTarget, Settings};
use crate::proxy::target::view::BackendView;
use crate::proxy::target::{Hub, Way};
use crate::table::group::{Endpoint, GroupKey, GroupSnapshot};
use crate::table::snapshot::Groups;
use crate::xdp::status::{Status, View};

/// Most targets: more than anybody reads.
pub(super) const MOST_TARGETS: usize = 200;

/// Most endpoints of a target, its ClusterIP among them.
pub(super) const MOST_BACKENDS: usize = 100;

/// Most hosts of a target.
const MOST_HOSTS: usize = 20;

/// Most faults of a target: one for each annotation, and some.
const MOST_FAULTS: usize = 20;

/// Most characters of a text that a Service's owner chose.
const MOST_CHARACTERS: usize = 400;

/// The request path, where there is one.
#[derive(Debug, Clone)]
pub struct Requests {
    /// Which targets there are.
    pub routes: Routes,
    /// What they share.
    pub hub: Arc<Hub>,
}

/// Where pictures come from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) replica: String,
    pub(super) readiness: Readiness,
    pub(super) groups: Groups,
    pub(super) requests: Option<Requests>,
    pub(super) xdp: Option<Arc<Status>>,
    pub(super) metrics: PrometheusHandle,
}

/// Everything that the page shows. Holds no time of its own: when nothing happens, two of them are the same.
#[derive(Debug, Serialize)]
pub(super) struct Picture<'a> {
    replica: &'a str,
    version: &'static str,
    ready: bool,
    /// What readiness depends on, a line each.
    readiness: Vec<String>,
    /// None when there is no request path.
    requests: Option<RequestsView>,
    /// None when there is no readiness map.
    xdp: Option<View>,
    /// Services that take requests; all of them when there is no request path.
    targets: Vec<ShownTarget>,
    /// Targets that are left out.
    targets_cut: usize,
    lag: Vec<Lag>,
}

#[derive(Debug, Serialize)]
struct RequestsView {
    /// Requests held, of all targets.
    held: usize,
    /// Services that take no requests.
    other_services: usize,
}

/// One Service, with how many of its hosts, faults and endpoints are left out.
#[derive(Debug, Serialize)]
struct ShownTarget {
    namespace: String,
    service: String,
    hosts: Vec<String>,
    hosts_cut: usize,
    settings: Option<Settings>,
    faults: Vec<String>,
    faults_cut: usize,
    held: usize,
    held_seconds: f64,
    in_flight: u64,
    backends: Vec<BackendView>,
    backends_cut: usize,
}

impl Sources {
    pub(super) fn picture(&self) -> Picture<'_> {
        let (ready, readiness) = self.readiness.report();
        let (targets, targets_cut) = match &self.requests {
            Some(Requests { routes, .. }) => self.routed(routes),
            None => self.observed(),
        };
        let requests = self.requests.as_ref().map(|requests| RequestsView {
            held: requests.hub.held(),
            other_services: self.groups.count().saturating_sub(targets.len() + targets_cut),
        });
        Picture {
            replica: &self.replica,
            version: env!("CARGO_PKG_VERSION"),
            ready,
            readiness: readiness.lines().map(str::to_owned).collect(),
            requests,
            xdp: self.xdp.as_ref().map(|xdp| xdp.view()),
            targets,
            targets_cut,
            lag: lag::read(&self.metrics.render()),
        }
    }

    /// Services that opted in, by name. Where they are too many, those with something to look at stay.
    fn routed(&self, routes: &Routes) -> (Vec<ShownTarget>, usize) {
        let mut listed = routes.listed();
        let cut = listed.len().saturating_sub(MOST_TARGETS);
        if cut > 0 {
            listed.sort_by_cached_key(|listed| (is_quiet(listed), listed.service.key.clone()));
            listed.truncate(MOST_TARGETS);
        }
        listed.sort_by(|a, b| a.service.key.cmp(&b.service.key));
        (listed.iter().map(|listed| self.routed_target(listed)).collect(), cut)
    }

    fn routed_target(&self, listed: &Listed) -> ShownTarget {
        // One more place is for the ClusterIP.
        let view = TargetView::of(listed, MOST_BACKENDS - 1);
        let GroupKey { namespace, service } = &listed.service.key;
        let direct = view.backends.iter().filter(|backend| backend.way == Way::Direct).count();
        let all = self.groups.get(namespace, service).map_or(0, |snapshot| snapshot.endpoint_count());
        // Both are read one after the other: while all fit, a difference is one in time.
        let cut = if direct < MOST_BACKENDS - 1 { 0 } else { all.saturating_sub(direct) };
        ShownTarget::of(view, cut)
    }

    /// All Services, by name.
    fn observed(&self) -> (Vec<ShownTarget>, usize) {
        let mut all = self.groups.all();
        all.sort_by(|a, b| a.key().cmp(b.key()));
        let cut = all.len().saturating_sub(MOST_TARGETS);
        all.truncate(MOST_TARGETS);
        (all.iter().map(|snapshot| observed_target(snapshot)).collect(), cut)
    }
}

fn is_quiet(listed: &Listed) -> bool {
    let held = match &listed.taker {
        Taker::Target(target) => target.held(),
        Taker::Nobody(_) => 0,
    };
    held == 0 && listed.faults.is_empty()
}

fn observed_target(snapshot: &GroupSnapshot) -> ShownTarget {
    let mut backends: Vec<BackendView> = snapshot.endpoints().take(MOST_BACKENDS).map(|e| observed(&e)).collect();
    backends.sort_by(|a, b| (&a.pod, &a.address).cmp(&(&b.pod, &b.address)));
    let cut = snapshot.endpoint_count().saturating_sub(backends.len());
    let GroupKey { namespace, service } = snapshot.key();
    let view = TargetView {
        namespace: namespace.as_ref().to_owned(),
        service: service.as_ref().to_owned(),
        hosts: Vec::new(),
        settings: None,
        faults: Vec::new(),
        held: 0,
        held_seconds: 0.0,
        in_flight: 0,
        backends,
    };
    ShownTarget::of(view, cut)
}

/// An endpoint that no request of ours goes to.
fn observed(endpoint: &Endpoint) -> BackendView {
    let pod = endpoint.pod.as_ref();
    BackendView {
        pod: pod.map(|pod| pod.name().as_ref().to_owned()),
        uid: pod.map(|pod| pod.uid().to_string()),
        address: endpoint.addresses.first().map(ToString::to_string),
        way: Way::Direct,
        state: Some(endpoint.verdict.state),
        source: Some(endpoint.verdict.source),
        since_ms: endpoint.verdict.since_ms,
        in_flight: 0,
        quarantine_seconds: None,
    }
}

impl ShownTarget {
    fn of(view: TargetView, backends_cut: usize) -> Self {
        let TargetView { namespace, service, hosts, settings, faults, held, held_seconds, in_flight, backends } = view;
        Self {
            namespace,
            service,
            hosts_cut: hosts.len().saturating_sub(MOST_HOSTS),
            hosts: hosts.into_iter().take(MOST_HOSTS).collect(),
            settings: settings.map(shortened),
            faults_cut: faults.len().saturating_sub(MOST_FAULTS),
            faults: faults.iter().take(MOST_FAULTS).map(short).collect(),
            held,
            held_seconds,
            in_flight,
            backends,
            backends_cut,
        }
    }
}

/// The kind to scale is the one setting that is as long as an annotation may be.
fn shortened(mut settings: Settings) -> Settings {
    if let Some(ScaleTarget { kind, .. }) = &mut settings.scale_target {
        *kind = short(&*kind).into();
    }
    settings
}

/// The beginning of a text; what is beyond is not even formatted.
fn short(text: impl Display) -> String {
    let mut short = Short { text: String::new(), left: MOST_CHARACTERS };
    if write!(short, "{text}").is_err() {
        short.text.push('…');
    }
    short.text
}

struct Short {
    text: String,
    left: usize,
}

impl Write for Short {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        for character in more.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            self.text.push(character);
        }
        Ok(())
    }
}
