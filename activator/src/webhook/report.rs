//! Events for those who look for a sidecar later: one for each controller (or pod) and reason, said again after a while,
//! a few a second. What comes in greater numbers is dropped and counted: every pod's creator has been warned already.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use metrics::counter;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::call::call;
use super::review::Regarding;
use crate::inject::Reason;

/// Reports that may wait.
const WAITING: usize = 256;

/// Objects whose reports are told apart.
const REMEMBERED: usize = 4096;

/// How long the same words are not said again. Events themselves live for an hour.
const SAME_AFTER: Duration = Duration::from_secs(600);

/// Pause after each call: five a second, what client-go grants a whole controller.
const PACE: Duration = Duration::from_millis(200);

/// Longest message that the API server takes in an Event.
const MESSAGE_BYTES: usize = 1024;

/// What is reported and not said yet.
type Report = (Regarding, Reason);

/// Takes reports.
#[derive(Debug, Clone)]
pub(super) struct Reports(mpsc::Sender<Report>);

impl Reports {
    /// The taking and the sending end.
    pub(super) fn new() -> (Self, mpsc::Receiver<Report>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    pub(super) fn put(&self, regarding: Regarding, reason: Reason) {
        if self.0.try_send((regarding, reason)).is_err() {
            count("dropped");
        }
    }
}

/// What was said lately. Pure: time is an argument.
#[derive(Debug, Default)]
struct Said(HashMap<(String, String), Duration>);

impl Said {
    /// Whether to say it now.
    fn is_news(&mut self, about: &Regarding, message: &str, now: Duration) -> bool {
        let Regarding { kind, namespace, name, uid, .. } = about;
        let key = (format!("{kind}/{namespace}/{name}/{uid}"), message.to_owned());
        if self.0.get(&key).is_some_and(|at| now < *at + SAME_AFTER) {
            return false;
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, at| now < *at + SAME_AFTER);
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(key, now);
        true
    }
}

/// Sends reports as long as there are ends that take them.
pub(super) async fn send(client: kube::Client, mut reports: mpsc::Receiver<Report>) {
    let (mut said, started) = (Said::default(), Instant::now());
    while let Some((about, reason)) = reports.recv().await {
        let message = format!("A pod of it has no sidecar: {reason}");
        let message = message[..message.floor_char_boundary(MESSAGE_BYTES)].to_owned();
        if !said.is_news(&about, &message, started.elapsed()) {
            continue;
        }
        let events: Api<Event> = Api::namespaced(client.clone(), &about.namespace);
        match call(events.create(&PostParams::default(), &event(&about, message, Timestamp::now()))).await {
            Ok(_) => count("sent"),
            Err(error) => {
                count("failed");
                let (namespace, error): (_, &dyn std::error::Error) = (&about.namespace, &error);
                tracing::warn!(namespace, error, "an Event cannot be written");
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

fn event(about: &Regarding, message: String, now: Timestamp) -> Event {
    let Regarding { api_version, kind, namespace, name, uid } = about.clone();
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let prefix = &name[..name.floor_char_boundary(200)];
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{prefix}.")),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind),
            namespace: Some(namespace),
            name: Some(name),
            uid: Some(uid).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some("SidecarNotInjected".to_owned()),
        message: Some(message),
        source: Some(EventSource { component: Some("podlight-webhook".to_owned()), host: None }),
        reporting_component: Some("podlight.dev/webhook".to_owned()),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Event::default()
    }
}

fn count(result: &'static str) {
    counter!("podlight_injection_reports_total", "result" => result).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_are_said_once_in_ten_minutes_and_memory_is_bounded() {
        let about = |name: &str| Regarding {
            api_version: "apps/v1".to_owned(),
            kind: "ReplicaSet".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: "u".to_owned(),
        };
        let mut said = Said::default();
        assert!(said.is_news(&about("web"), "a", Duration::ZERO));
        assert!(!said.is_news(&about("web"), "a", Duration::from_secs(599)));
        assert!(said.is_news(&about("web"), "b", Duration::ZERO) && said.is_news(&about("api"), "a", Duration::ZERO));
        assert!(said.is_news(&about("web"), "a", SAME_AFTER));
        for n in 0..3 * REMEMBERED {
            said.is_news(&about(&n.to_string()), "a", Duration::ZERO);
            assert!(said.0.len() <= REMEMBERED);
        }
    }
}
