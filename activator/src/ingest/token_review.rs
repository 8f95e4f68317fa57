//! Step 5: the API server's word on a token. Asked once for all who wait for it, for few tokens at a time, behind a
//! queue with an end; a refusal is remembered for a while, apart from what is accepted.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{counter, gauge};

use super::authenticate::AuthError;
use super::cache::Cache;
use super::flights::{Flights, NoAnswer};
use super::kubernetes::Kubernetes;
use super::token::{Subject, TokenHash, UnverifiedToken};
use super::{as_gauge, locked};
use crate::cluster::{ApiError, Reviewed};
use crate::table::owner::Clock;

/// How long a refused token is refused without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Most refused tokens remembered.
const REFUSED_MAX: usize = 4_096;

type Verdict = Result<Arc<Reviewed>, AuthError>;

/// TokenReviews under way, and those that ended in a refusal.
pub(super) struct Reviews {
    kubernetes: Kubernetes,
    clock: Clock,
    under_way: Flights<TokenHash, Verdict>,
    refused: Mutex<Cache<TokenHash, Arc<str>>>,
}

impl Reviews {
    /// At most `in_flight` reviews at once and `waiting` more in the queue.
    pub(super) fn new(kubernetes: Kubernetes, clock: Clock, in_flight: usize, waiting: usize) -> Self {
        let refused = Mutex::new(Cache::new(REFUSED_MAX));
        Self { kubernetes, clock, under_way: Flights::new(in_flight, waiting), refused }
    }

    /// The API server's word on a token.
    pub(super) async fn review(&self, hash: TokenHash, token: &UnverifiedToken<'_>) -> Verdict {
        if let Some(reason) = locked(&self.refused).lookup(&hash, self.clock.now().uptime) {
            counter!("podlight_auth_cache_hits_total", "cache" => "refused").increment(1);
            return Err(AuthError::Rejected(Arc::clone(reason)));
        }
        if !self.kubernetes.reachable() {
            return Err(AuthError::Unavailable(None));
        }
        let (kubernetes, text) = (self.kubernetes.clone(), token.text().to_owned());
        let subject = token.unverified_subject().clone();
        let call = || async move { ask(&kubernetes, &text, &subject).await };
        let verdict = match self.under_way.join(hash, call).await {
            Ok(verdict) => verdict,
            Err(NoAnswer::Full) => Err(AuthError::Overloaded),
            Err(NoAnswer::Lost) => Err(AuthError::Unavailable(None)),
        };
        if let Err(AuthError::Rejected(reason)) = &verdict {
            let now = self.clock.now().uptime;
            locked(&self.refused).insert(hash, Arc::clone(reason), now + REFUSED_FOR, now);
        }
        verdict
    }

    /// Drops what has ended and tells the sizes.
    pub(super) fn sweep(&self) {
        let mut refused = locked(&self.refused);
        refused.drop_ended(self.clock.now().uptime);
        gauge!("podlight_auth_cache_entries", "cache" => "refused").set(as_gauge(refused.len()));
        gauge!("podlight_token_reviews_under_way").set(as_gauge(self.under_way.len()));
    }
}

/// One review, whose answer must fit what the token says of itself.
async fn ask(kubernetes: &Kubernetes, token: &str, subject: &Subject) -> Verdict {
    let verdict = match kubernetes.review_token(token).await {
        Ok(reviewed) if is_of(&reviewed, subject) => Ok(Arc::new(reviewed)),
        Ok(_) => Err(AuthError::Rejected("the review names another ServiceAccount or pod than the token".into())),
        Err(ApiError::Rejected(reason)) => Err(AuthError::Rejected(reason.into())),
        Err(error @ (ApiError::Unavailable(_) | ApiError::OwnCredential)) => Err(AuthError::Unavailable(Some(error))),
    };
    let result = verdict.as_ref().err().map_or("accepted", AuthError::label);
    counter!("podlight_token_reviews_total", "result" => result).increment(1);
    verdict
}

fn is_of(reviewed: &Reviewed, subject: &Subject) -> bool {
    let pod = subject.pod.as_ref();
    reviewed.namespace == subject.namespace
        && reviewed.service_account == subject.service_account
        && reviewed.pod_name.as_deref() == pod.map(|p| p.name.as_str())
        && reviewed.pod_uid.as_ref() == pod.map(|p| &p.uid)
}
