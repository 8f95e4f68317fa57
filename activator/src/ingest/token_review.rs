//! Step 5: the API server's word on a token. Asked once for all who wait for it, for few tokens at a time, behind a
//! queue with an end; a refusal is remembered for a while, apart from what is accepted. An answer that comes too late
//! for those who asked is kept for when they ask again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::time::Instant;

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

/// How long anybody waits for a review once it is asked for: as long as a sidecar waits for the whole.
const PATIENCE: Duration = Duration::from_secs(2);

/// An answer that took this long is kept: those who wait may be giving up just now.
const LATE_AFTER: Duration = Duration::from_secs(1);

/// Most answers kept so: no more than 16 a second can be late by that, for a minute.
const LATE_MAX: usize = 1_024;

/// A token that the API server accepts.
#[derive(Debug, Clone)]
pub(super) struct Word {
    /// Whose it is.
    pub(super) user: Arc<Reviewed>,
    /// When that was said, by the uptime.
    pub(super) at: Duration,
}

type Verdict = Result<Word, AuthError>;

/// TokenReviews under way, and those that ended in a refusal or too late.
pub(super) struct Reviews {
    asked: Arc<Asked>,
    under_way: Flights<TokenHash, Verdict>,
}

/// What a review needs and leaves behind.
struct Asked {
    kubernetes: Kubernetes,
    clock: Clock,
    refused: Mutex<Cache<TokenHash, Arc<str>>>,
    late: Mutex<Cache<TokenHash, Word>>,
    late_for: Duration,
}

impl Reviews {
    /// At most `in_flight` reviews at once and `waiting` more in the queue. A late answer holds for as long as one in
    /// time does.
    pub(super) fn new(
        kubernetes: Kubernetes,
        clock: Clock,
        (in_flight, waiting): (usize, usize),
        late_for: Duration,
    ) -> Self {
        let (refused, late) = (Mutex::new(Cache::new(REFUSED_MAX)), Mutex::new(Cache::new(LATE_MAX)));
        let asked = Asked { kubernetes, clock, refused, late, late_for };
        Self { asked: Arc::new(asked), under_way: Flights::new(in_flight, waiting, PATIENCE) }
    }

    /// The API server's word on a token.
    pub(super) async fn review(&self, hash: TokenHash, token: &UnverifiedToken<'_>) -> Verdict {
        if let Some(verdict) = self.asked.known(&hash) {
            return verdict;
        }
        if !self.asked.kubernetes.reachable() {
            return Err(AuthError::Unavailable(None));
        }
        let (asked, text) = (Arc::clone(&self.asked), token.text().to_owned());
        let subject = token.unverified_subject().clone();
        let call = || async move { asked.ask(hash, &text, &subject).await };
        match self.under_way.join(hash, call).await {
            Ok(verdict) => verdict,
            Err(NoAnswer::Full) => Err(AuthError::Overloaded),
            Err(NoAnswer::Lost | NoAnswer::Late) => Err(AuthError::Unavailable(None)),
        }
    }

    /// Drops what has ended and tells the sizes.
    pub(super) fn sweep(&self) {
        let now = self.asked.clock.now().uptime;
        let (mut refused, mut late) = (locked(&self.asked.refused), locked(&self.asked.late));
        refused.drop_ended(now);
        late.drop_ended(now);
        gauge!("podlight_auth_cache_entries", "cache" => "refused").set(as_gauge(refused.len()));
        gauge!("podlight_auth_cache_entries", "cache" => "late").set(as_gauge(late.len()));
        gauge!("podlight_token_reviews_under_way").set(as_gauge(self.under_way.len()));
    }
}

impl Asked {
    /// What was said lately, unless it was heard.
    fn known(&self, hash: &TokenHash) -> Option<Verdict> {
        let now = self.clock.now().uptime;
        let refused = locked(&self.refused).lookup(hash, now).cloned();
        let (cache, verdict) = match refused {
            Some(reason) => ("refused", Err(AuthError::Rejected(reason))),
            None => ("late", Ok(locked(&self.late).lookup(hash, now)?.clone())),
        };
        counter!("podlight_auth_cache_hits_total", "cache" => cache).increment(1);
        Some(verdict)
    }

    /// One review, whose answer must fit what the token says of itself.
    async fn ask(&self, hash: TokenHash, token: &str, subject: &Subject) -> Verdict {
        if !self.kubernetes.reachable() {
            // Since it joined the queue.
            return Err(AuthError::Unavailable(None));
        }
        let began = Instant::now();
        let verdict = match self.kubernetes.review_token(token).await {
            Ok(reviewed) if is_of(&reviewed, subject) => Ok(Arc::new(reviewed)),
            Ok(_) => Err(AuthError::Rejected("the review names another ServiceAccount or pod than the token".into())),
            Err(ApiError::Rejected(reason)) => Err(AuthError::Rejected(reason.into())),
            Err(error @ (ApiError::Unavailable(_) | ApiError::OwnCredential)) => {
                Err(AuthError::Unavailable(Some(error)))
            }
        };
        let result = verdict.as_ref().err().map_or("accepted", AuthError::label);
        counter!("podlight_token_reviews_total", "result" => result).increment(1);
        let at = self.clock.now().uptime;
        let verdict = verdict.map(|user| Word { user, at });
        match &verdict {
            Ok(word) if began.elapsed() >= LATE_AFTER => {
                locked(&self.late).insert(hash, word.clone(), at + self.late_for, at);
            }
            Err(AuthError::Rejected(reason)) => {
                locked(&self.refused).insert(hash, Arc::clone(reason), at + REFUSED_FOR, at);
            }
            _ => {}
        }
        verdict
    }
}

fn is_of(reviewed: &Reviewed, subject: &Subject) -> bool {
    let pod = subject.pod.as_ref();
    reviewed.namespace == subject.namespace
        && reviewed.service_account == subject.service_account
        && reviewed.pod_name.as_deref() == pod.map(|p| p.name.as_str())
        && reviewed.pod_uid.as_ref() == pod.map(|p| &p.uid)
}
