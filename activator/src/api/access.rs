//! Who may read: a bearer token that the API server accepts, and then its word (SubjectAccessReview) on the path
//! asked for. Decisions are kept for seconds; being unable to ask is never an answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, header};
use metrics::counter;
use podlight_proto::{ErrorCode, token_hash};

use super::Refused;
use crate::cluster::{Api, Reviewed};
use crate::ingest::Authenticator;

/// How long a decision holds: what a change of roles may take to count.
const DECISION_FOR: Duration = Duration::from_secs(10);

/// Most decisions kept; beyond, those that have run out go, and if that is not enough all.
const DECISIONS: usize = 1024;

/// Longest path whose decision is kept: two Kubernetes names and what is around them.
const PATH_BYTES: usize = 512;

/// Decides on readers.
#[derive(Debug)]
pub(super) struct Access {
    judge: Judge,
    decisions: Mutex<HashMap<(String, String), (bool, Instant)>>,
}

/// Whoever knows tokens and roles.
#[derive(Debug)]
pub(super) enum Judge {
    /// The cluster.
    Cluster(Arc<Authenticator>, Api),
    /// A made-up one: the token says who may read what.
    #[cfg(test)]
    Scripted(super::tests::Script),
}

impl Access {
    pub(super) fn new(judge: Judge) -> Self {
        Self { judge, decisions: Mutex::default() }
    }

    /// Lets a reader pass, or says why not.
    pub(super) async fn admit(&self, headers: &HeaderMap, path: &str) -> Result<(), Refused> {
        let decided = self.decide(headers, path).await;
        let result = decided.as_ref().err().map_or("admitted", |refused| refused.err.as_str());
        counter!("podlight_query_access_total", "result" => result).increment(1);
        decided
    }

    async fn decide(&self, headers: &HeaderMap, path: &str) -> Result<(), Refused> {
        let token = bearer(headers)?;
        let user = self.judge.identify(token).await?;
        let key = (token_hash(token), path.to_owned());
        let allowed = match self.kept(&key) {
            Some(allowed) => allowed,
            None => {
                let allowed = self.judge.may_read(&user, path).await?;
                self.keep(key, allowed);
                allowed
            }
        };
        if allowed {
            return Ok(());
        }
        let user = &user.username;
        Err(Refused::new(ErrorCode::AccessDenied, format!("{user} may not get the non-resource path {path}")))
    }

    fn kept(&self, key: &(String, String)) -> Option<bool> {
        let decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        let (allowed, until) = decisions.get(key)?;
        (Instant::now() < *until).then_some(*allowed)
    }

    fn keep(&self, key: (String, String), allowed: bool) {
        if key.1.len() > PATH_BYTES {
            return;
        }
        let now = Instant::now();
        let mut decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
        if decisions.len() >= DECISIONS {
            decisions.retain(|_, (_, until)| now < *until);
        }
        if decisions.len() >= DECISIONS {
            decisions.clear();
        }
        decisions.insert(key, (allowed, now + DECISION_FOR));
    }
}

impl Judge {
    async fn identify(&self, token: &str) -> Result<Reviewed, Refused> {
        match self {
            Self::Cluster(authenticator, _) => {
                let caller = authenticator.authenticate(token).await.map_err(|error| {
                    if error.is_undecided() {
                        undecided("the token cannot be reviewed now")
                    } else {
                        Refused::new(ErrorCode::AuthenticationFailed, error.to_string())
                    }
                })?;
                Ok(caller.user().clone())
            }
            #[cfg(test)]
            Self::Scripted(script) => script.identify(token),
        }
    }

    async fn may_read(&self, user: &Reviewed, path: &str) -> Result<bool, Refused> {
        match self {
            Self::Cluster(_, api) => {
                let allowed = api.authorize(user, path).await;
                allowed.map_err(|_| undecided("the Kubernetes API cannot say now who may read"))
            }
            #[cfg(test)]
            Self::Scripted(script) => Ok(script.may_read(user, path)),
        }
    }
}

/// It may be decided later.
pub(super) fn undecided(description: &str) -> Refused {
    Refused::new(ErrorCode::Pending, description).after(Duration::from_secs(1))
}

/// The one bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, Refused> {
    let missing = |what: &str| Refused::new(ErrorCode::AuthenticationFailed, what);
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(|| missing("a bearer token is needed, for the audience podlight"))?;
    if values.next().is_some() {
        return Err(missing("exactly one Authorization header is needed"));
    }
    let value = value.to_str().map_err(|_| missing("the Authorization header is not text"))?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() => Ok(token),
        _ => Err(missing("the Authorization header must be a bearer token")),
    }
}
