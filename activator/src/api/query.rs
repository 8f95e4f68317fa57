//! `GET /v1/targets` and `/v1/targets/{namespace}/{service}`: the table as it is now. The full list is written
//! piece by piece, so that a large table is never one string.

use std::io::Write as _;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, Uri, header};
use podlight_proto::ErrorCode;

use super::view::{TargetView, sorted_endpoints};
use super::{ApiState, Refused};
use crate::server::paced::{Cut, Pieces, answer};
use crate::table::group::{Endpoint, GroupKey, GroupSnapshot};

/// Endpoints that are written at once.
pub(super) const BATCH: usize = 64;

/// All targets.
pub(super) async fn all(State(api): State<Arc<ApiState>>, uri: Uri, headers: HeaderMap) -> Result<Response, Refused> {
    api.admit(&headers, uri.path()).await?;
    let mut snapshots = api.groups.all();
    snapshots.sort_unstable_by(|a, b| a.key().cmp(b.key()));
    respond(api, snapshots)
}

/// One target.
pub(super) async fn one(
    State(api): State<Arc<ApiState>>,
    name: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    api.admit(&headers, uri.path()).await?;
    let Path((namespace, service)) = name.map_err(|e| Refused::new(ErrorCode::InvalidRequest, e.body_text()))?;
    let snapshot = api.groups.get(&namespace, &service);
    let snapshot = snapshot.ok_or_else(|| Refused::new(ErrorCode::NotFound, "there is no such Service"))?;
    respond(api, vec![snapshot])
}

fn respond(api: Arc<ApiState>, snapshots: Vec<Arc<GroupSnapshot>>) -> Result<Response, Refused> {
    let permit = Arc::clone(&api.queries).try_acquire_owned();
    let permit = permit.map_err(|_| Refused::busy("queries", "too many queries are under way"))?;
    let (mut pieces, body) = answer(permit);
    tokio::spawn(async move {
        if let Err(cut) = write(&api, &snapshots, &mut pieces).await {
            tracing::debug!(reason = cut.label(), "a query's answer was not read to its end");
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], body).into_response())
}

/// The answer says how new it is at least, before it looks: a watch may go on from there.
async fn write(api: &ApiState, snapshots: &[Arc<GroupSnapshot>], pieces: &mut Pieces) -> Result<(), Cut> {
    let start = serde_json::json!({"replica": &*api.replica, "id": api.position(api.feed.newest()).to_string()});
    let start = start.to_string();
    let _ = write!(pieces.buffer(), "{},\"targets\":[", start.trim_end_matches('}'));
    for (index, snapshot) in snapshots.iter().enumerate() {
        if index > 0 {
            pieces.buffer().push(b',');
        }
        write_target(snapshot.key(), &sorted_endpoints(snapshot), api.now_ms(), pieces).await?;
    }
    pieces.buffer().extend_from_slice(b"]}\n");
    pieces.flush().await
}

/// One target as JSON, however many endpoints it has.
async fn write_target(key: &GroupKey, endpoints: &[Endpoint], now_ms: u64, pieces: &mut Pieces) -> Result<(), Cut> {
    let batches = endpoints.chunks(BATCH);
    let empty = TargetView::of(key, &[], now_ms);
    let frame = serde_json::to_string(&empty).unwrap_or_default();
    pieces.buffer().extend_from_slice(frame.trim_end_matches("]}").as_bytes());
    for (index, batch) in batches.enumerate() {
        let views: Vec<_> = batch.iter().map(|e| super::view::EndpointView::of(e, now_ms)).collect();
        let json = serde_json::to_string(&views).unwrap_or_default();
        let inner = json.strip_prefix('[').and_then(|json| json.strip_suffix(']')).unwrap_or_default();
        if index > 0 {
            pieces.buffer().push(b',');
        }
        pieces.buffer().extend_from_slice(inner.as_bytes());
        pieces.pace().await?;
    }
    pieces.buffer().extend_from_slice(b"]}");
    Ok(())
}
