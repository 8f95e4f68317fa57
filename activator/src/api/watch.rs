//! `GET /v1/watch`: the table and its changes as server-sent events. A full state is `state` events, one or more a
//! target, and `synced`; then come `endpoint`, `endpoint-gone`, `target` and `target-gone`. Every event from `synced` on carries
//! an id to resume from. State is pulled from snapshots and a shared log at the reader's pace: nothing is kept per
//! reader, and one that falls behind the log is cut off.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, Uri, header};
use metrics::{counter, gauge};
use podlight_proto::ErrorCode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::query::BATCH;
use super::view::{EndpointEvent, EndpointName, EndpointView, Position, TargetName, TargetView, sorted_endpoints};
use super::{ApiState, Refused};
use crate::server::paced::{Cut, Pieces, answer};
use crate::table::group::GroupKey;
use crate::table::snapshot::{FeedItem, FeedWhat};

/// How often a reader hears that the connection lives, when there is nothing else to tell.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);

/// Changes taken from the log at once.
const TAKE: usize = 256;

/// When a reader that lost its connection is asked to come back, in milliseconds.
const RETRY_MS: u32 = 1000;

/// Name of the header that a reader resumes with.
const LAST_EVENT_ID: &str = "last-event-id";

/// What a reader may ask for.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    last_event_id: Option<String>,
    namespace: Option<String>,
    service: Option<String>,
}

impl Wanted {
    /// What the query string and the headers ask for. The header is what browsers resume with; it counts.
    fn read(query: Result<Query<Self>, QueryRejection>, headers: &HeaderMap) -> Result<Self, Refused> {
        let Query(mut wanted) = query.map_err(|e| Refused::new(ErrorCode::InvalidRequest, e.body_text()))?;
        if wanted.service.is_some() && wanted.namespace.is_none() {
            return Err(Refused::new(ErrorCode::InvalidRequest, "service needs namespace beside it"));
        }
        if let Some(id) = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()) {
            wanted.last_event_id = Some(id.to_owned());
        }
        Ok(wanted)
    }

    fn includes(&self, key: &GroupKey) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| *namespace == *key.namespace)
            && self.service.as_deref().is_none_or(|service| *service == *key.service)
    }
}

/// Starts a watch.
pub(super) async fn watch(
    State(api): State<Arc<ApiState>>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    api.admit(&headers, uri.path()).await?;
    let wanted = Wanted::read(wanted, &headers)?;
    let permit = Arc::clone(&api.readers).try_acquire_owned();
    let permit = permit.map_err(|_| Refused::busy("readers", "too many readers watch"))?;
    let (pieces, body) = answer(permit);
    tokio::spawn(Reader { api, wanted, pieces }.run());
    Ok(([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")], body).into_response())
}

/// The end of a full state, or of a successful resumption.
#[derive(Debug, Serialize)]
struct Synced<'a> {
    replica: &'a str,
    /// Whether the reader's own state goes on; otherwise the `state` events before this are all there is.
    resumed: bool,
}

struct Reader {
    api: Arc<ApiState>,
    wanted: Wanted,
    pieces: Pieces,
}

impl Reader {
    async fn run(mut self) {
        let readers = gauge!("podlight_watch_readers");
        readers.increment(1);
        let shutdown = self.api.shutdown.clone();
        let ended = tokio::select! {
            ended = self.tell() => ended,
            () = shutdown.begun() => Ok(()),
        };
        readers.decrement(1);
        let Err(cut) = ended else { return };
        if cut != Cut::Left {
            counter!("podlight_watch_readers_cut_total", "reason" => cut.label()).increment(1);
            tracing::info!(reason = cut.label(), "a reader of the watch was cut off");
        }
    }

    async fn tell(&mut self) -> Result<(), Cut> {
        let _ = write!(self.pieces.buffer(), "retry: {RETRY_MS}\n\n");
        let mut position = match self.resumable() {
            Some(position) => {
                self.synced(position, true).await?;
                position
            }
            None => self.full_state().await?,
        };
        loop {
            self.wait_beyond(position).await?;
            let items = self.api.feed.since(position, TAKE).map_err(|_| Cut::Lagged)?;
            for item in &items {
                position = item.id;
                if self.wanted.includes(item.group()) {
                    self.change(item);
                    self.pieces.pace().await?;
                }
            }
            self.pieces.flush().await?;
        }
    }

    /// Where the reader left off, if that was in this process and the log still goes on from there.
    fn resumable(&self) -> Option<u64> {
        let position = Position::parse(self.wanted.last_event_id.as_deref()?)?;
        let known = position.instance == &*self.api.instance && position.change <= self.api.feed.newest();
        (known && self.api.feed.since(position.change, 1).is_ok()).then_some(position.change)
    }

    /// Tells all there is; what changes meanwhile is told again.
    async fn full_state(&mut self) -> Result<u64, Cut> {
        let position = self.api.feed.newest();
        let mut snapshots = self.api.groups.all();
        snapshots.retain(|snapshot| self.wanted.includes(snapshot.key()));
        snapshots.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        let now_ms = self.api.now_ms();
        for snapshot in snapshots {
            let endpoints = sorted_endpoints(&snapshot);
            // A target without endpoints is told, too.
            let first = endpoints.len().min(BATCH);
            let (first, rest) = endpoints.split_at(first);
            for batch in std::iter::once(first).chain(rest.chunks(BATCH)) {
                self.event("state", None, &TargetView::of(snapshot.key(), batch, now_ms));
                self.pieces.pace().await?;
            }
        }
        self.synced(position, false).await?;
        Ok(position)
    }

    async fn synced(&mut self, position: u64, resumed: bool) -> Result<(), Cut> {
        let api = Arc::clone(&self.api);
        self.event("synced", Some(position), &Synced { replica: &api.replica, resumed });
        self.pieces.flush().await
    }

    /// Waits for a change, and meanwhile shows that the connection lives.
    async fn wait_beyond(&mut self, position: u64) -> Result<(), Cut> {
        let api = Arc::clone(&self.api);
        let mut ticks = tokio::time::interval_at(Instant::now() + KEEP_ALIVE_EVERY, KEEP_ALIVE_EVERY);
        loop {
            tokio::select! {
                biased;
                () = self.pieces.left() => return Err(Cut::Left),
                () = api.feed.wait_beyond(position) => return Ok(()),
                _ = ticks.tick() => {
                    self.pieces.buffer().extend_from_slice(b":\n\n");
                    self.pieces.flush().await?;
                }
            }
        }
    }

    fn change(&mut self, item: &FeedItem) {
        let target = TargetName::of(item.group());
        let id = Some(item.id);
        match &item.what {
            FeedWhat::Service(_) => self.event("target", id, &target),
            FeedWhat::ServiceGone(_) => self.event("target-gone", id, &target),
            FeedWhat::Endpoint(endpoint) => {
                let view = Some(EndpointView::of(endpoint, self.api.now_ms()));
                self.event("endpoint", id, &EndpointEvent { target, id: EndpointName(&endpoint.id), endpoint: view });
            }
            FeedWhat::EndpointGone(_, gone) => {
                self.event("endpoint-gone", id, &EndpointEvent { target, id: EndpointName(gone), endpoint: None });
            }
        }
    }

    fn event(&mut self, name: &str, change: Option<u64>, data: &impl Serialize) {
        // Compact JSON has no line breaks, and writing to a Vec cannot fail.
        let data = serde_json::to_string(data).unwrap_or_default();
        let buffer = self.pieces.buffer();
        let _ = match change {
            None => write!(buffer, "event: {name}\ndata: {data}\n\n"),
            Some(change) => {
                let id = Position { instance: &self.api.instance, change };
                write!(buffer, "event: {name}\nid: {id}\ndata: {data}\n\n")
            }
        };
    }
}

/// Reads what a request asks for, for the fuzz target. A position that is understood is written as it was read, but for
/// leading zeros and signs.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz_wanted(uri: &Uri, headers: &HeaderMap) {
    let Ok(wanted) = Wanted::read(Query::try_from_uri(uri), headers) else { return };
    assert!(wanted.service.is_none() || wanted.namespace.is_some(), "a service without namespace is refused");
    let Some(position) = wanted.last_event_id.as_deref().and_then(Position::parse) else { return };
    let written = position.to_string();
    let again = Position::parse(&written).expect("what was written here");
    assert_eq!((again.instance, again.change), (position.instance, position.change));
}
