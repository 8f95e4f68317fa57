//! What is told to a Service's owner: an Event on the Service, seen by `kubectl describe service`. One Event per
//! Service and reason whatever replica tells it, no repetitions, and few calls: a flood of faults costs this task some
//! patience and nobody else anything.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use metrics::counter;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::api::{Call, CallFailure, KubernetesApi};
use super::{Shutdown, ended};
use crate::table::group::GroupKey;

/// Services and reasons told apart at once; more Services with faults than anybody reads about.
const HELD_MAX: usize = 1024;

/// How long the same words are not said again. Events themselves live for an hour.
const SAME_AFTER: Duration = Duration::from_secs(600);

/// How soon other words on the same Service and reason may follow.
const OTHER_AFTER: Duration = Duration::from_secs(10);

/// Pause after each call: five a second, what client-go grants a whole controller.
const PACE: Duration = Duration::from_millis(200);

/// Longest message that the API server takes in an Event.
const MESSAGE_BYTES: usize = 1024;

/// What kind of fault a Service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An annotation cannot be used.
    InvalidAnnotation,
    /// Another Service has the host.
    HostConflict,
}

impl Reason {
    /// As in the Event.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidAnnotation => "InvalidAnnotation",
            Self::HostConflict => "HostConflict",
        }
    }
}

/// A fault of a Service, to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Report {
    service: GroupKey,
    uid: String,
    reason: Reason,
    message: String,
}

type Key = (GroupKey, Reason);

/// The last words on a Service and reason.
#[derive(Debug)]
struct Words {
    report: Report,
    waiting: bool,
    said_at: Option<Duration>,
}

impl Words {
    fn due_at(&self) -> Duration {
        self.said_at.map_or(Duration::ZERO, |at| at + OTHER_AFTER)
    }
}

/// What is to be told and what was. Pure: time is an argument.
#[derive(Debug, Default)]
struct Held(HashMap<Key, Words>);

impl Held {
    /// Takes a report. False when there is no room for it.
    fn put(&mut self, report: Report, now: Duration) -> bool {
        let key = (report.service.clone(), report.reason);
        if let Some(words) = self.0.get_mut(&key) {
            let said = words.said_at.is_some_and(|at| now < at + SAME_AFTER);
            if words.report != report || !said {
                *words = Words { report, waiting: true, said_at: words.said_at };
            }
            return true;
        }
        if self.0.len() >= HELD_MAX {
            self.0.retain(|_, words| words.waiting || words.said_at.is_some_and(|at| now < at + SAME_AFTER));
        }
        if self.0.len() >= HELD_MAX {
            return false;
        }
        self.0.insert(key, Words { report, waiting: true, said_at: None });
        true
    }

    /// What to say now, or when there will be something.
    fn next(&mut self, now: Duration) -> Result<Report, Option<Duration>> {
        let waiting = self.0.values_mut().filter(|words| words.waiting);
        match waiting.min_by_key(|words| words.due_at()) {
            Some(words) if words.due_at() <= now => {
                (words.waiting, words.said_at) = (false, Some(now));
                Ok(words.report.clone())
            }
            later => Err(later.map(|words| words.due_at())),
        }
    }

    /// What could not be said may be tried again when it is put again.
    fn forget(&mut self, report: &Report) {
        let key = (report.service.clone(), report.reason);
        if self.0.get(&key).is_some_and(|words| !words.waiting) {
            self.0.remove(&key);
        }
    }
}

/// Where reports wait to be sent.
#[derive(Debug)]
pub(super) struct Outbox {
    held: Mutex<Held>,
    filled: Notify,
    started: Instant,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { held: Mutex::default(), filled: Notify::new(), started: Instant::now() }
    }
}

impl Outbox {
    pub(super) fn put(&self, service: &GroupKey, uid: &str, reason: Reason, message: &str) {
        let message = message[..message.floor_char_boundary(MESSAGE_BYTES)].to_owned();
        let report = Report { service: service.clone(), uid: uid.to_owned(), reason, message };
        if self.held().put(report, self.started.elapsed()) {
            self.filled.notify_one();
        } else {
            count(reason, "dropped");
        }
    }

    /// The next report, when it is due.
    async fn take(&self) -> Report {
        loop {
            let next = self.held().next(self.started.elapsed());
            match next {
                Ok(report) => return report,
                Err(None) => self.filled.notified().await,
                Err(Some(at)) => tokio::select! {
                    () = self.filled.notified() => {}
                    () = tokio::time::sleep_until(self.started + at) => {}
                },
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KubernetesApi {
    /// Sends what is reported, until shutdown.
    pub(super) async fn send_reports(self, shutdown: Shutdown) {
        tokio::select! {
            () = ended(shutdown) => {}
            () = self.send_for_ever() => {}
        }
    }

    async fn send_for_ever(&self) {
        let mut failing = false;
        loop {
            let report = self.outbox.take().await;
            let sent = self.send(&report).await;
            count(report.reason, if sent.is_ok() { "ok" } else { "failed" });
            if let Err(failure) = &sent {
                self.outbox.held().forget(&report);
                if !failing {
                    let error = failure as &dyn std::error::Error;
                    tracing::warn!(error, "cannot write Events on Services; their faults show in the status only");
                }
            }
            failing = sent.is_err();
            tokio::time::sleep(PACE).await;
        }
    }

    /// Applies the Event: all replicas write the same one.
    async fn send(&self, report: &Report) -> Result<(), CallFailure> {
        let (name, event) = event(report, Timestamp::now());
        let path =
            format!("/api/v1/namespaces/{}/events/{name}?fieldManager=podlight&force=true", report.service.namespace);
        let request = http::Request::patch(path)
            .header(http::header::CONTENT_TYPE, "application/apply-patch+yaml")
            .body(event.to_string().into_bytes());
        let Ok(request) = request else { return Err(CallFailure::Malformed("a Service's name")) };
        self.request(Call::Event, request).await.map(drop)
    }
}

/// An Event's name and content.
fn event(report: &Report, now: Timestamp) -> (String, Value) {
    let Report { service: GroupKey { namespace, service }, uid, reason, message } = report;
    let name = format!("{service}.{uid}.{}", reason.as_str().to_ascii_lowercase());
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": name},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": service, "uid": uid,
        },
        "type": "Warning",
        "reason": reason.as_str(),
        "message": message,
        "source": {"component": "podlight-activator"},
        "reportingComponent": "podlight.dev/activator",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    });
    (name, event)
}

fn count(reason: Reason, result: &'static str) {
    counter!("podlight_service_reports_total", "reason" => reason.as_str(), "result" => result).increment(1);
}

#[cfg(test)]
mod tests;
