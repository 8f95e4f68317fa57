//! What the API server was asked, from its audit log: each request is written before it is handled, so counts are exact the
//! moment an answer is back. (`apiserver_request_total` leaves out requests that are not for resources, such as the JWKS.)

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ControlPlane;

pub(super) const LOG_FILE: &str = "audit.log";

/// What is logged: reviews, reads of what Podlight watches, and the issuer's keys, save for the API server's own requests.
pub(super) fn policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["ResponseStarted", "ResponseComplete", "Panic"],
        "rules": [
            { "level": "None", "users": ["system:apiserver"] },
            { "level": "Metadata", "resources": [
                { "group": "authentication.k8s.io", "resources": ["tokenreviews"] },
                { "group": "authorization.k8s.io", "resources": ["subjectaccessreviews"] },
            ]},
            { "level": "Metadata", "verbs": ["get", "list", "watch"], "resources": [
                { "group": "", "resources": ["pods", "services"] },
                { "group": "discovery.k8s.io", "resources": ["endpointslices"] },
            ]},
            { "level": "Metadata", "nonResourceURLs": ["/openid/v1/jwks", "/.well-known/openid-configuration"] },
            { "level": "None" },
        ],
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    object_ref: Option<ObjectRef>,
}

#[derive(Deserialize)]
struct ObjectRef {
    resource: String,
}

impl ControlPlane {
    /// TokenReviews asked for so far, whatever their outcome.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn token_reviews(&self) -> Result<u64> {
        self.requests("create", "tokenreviews")
    }

    /// SubjectAccessReviews asked for so far.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn subject_access_reviews(&self) -> Result<u64> {
        self.requests("create", "subjectaccessreviews")
    }

    /// Reads of the issuer's keys so far.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn jwks_requests(&self) -> Result<u64> {
        self.requests("get", "/openid/v1/jwks")
    }

    /// Requests so far with `verb` for `target`: a resource (`get`, `list`, `watch` of `pods`, `services`,
    /// `endpointslices`; `create` of `tokenreviews`, `subjectaccessreviews`) or the path of a non-resource URL.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn requests(&self, verb: &str, target: &str) -> Result<u64> {
        let log = match File::open(self.folder().join(LOG_FILE)) {
            Ok(log) => BufReader::new(log),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error).context("cannot read the audit log"),
        };
        let mut count = 0;
        for line in log.lines() {
            let line = line?;
            // A last line without its end is a request of somebody else that is just being written.
            let Ok(record) = serde_json::from_str::<Record>(&line) else { continue };
            let asked = match &record.object_ref {
                Some(object) => object.resource == target,
                None => record.request_uri.split('?').next() == Some(target),
            };
            count += u64::from(asked && record.verb == verb);
        }
        Ok(count)
    }
}
