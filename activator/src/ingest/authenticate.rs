//! Steps 2 to 5: from the text of a token to whom it speaks for. Cheap to costly: shape, what was decided lately,
//! signature, and only then the API server's word. Nothing that a stranger can make up reaches the API server or
//! the cache of accepted tokens, except in `token-review` mode, where the queue and the cache of refused tokens
//! are what holds a flood.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use tracing::warn;

use super::cache::Cache;
use super::jwks::{KeyError, KeyStore};
use super::kubernetes::Kubernetes;
use super::token::{Subject, TokenError, TokenHash, UnverifiedToken};
use super::token_review::Reviews;
use super::{IngestConfig, as_gauge, locked};
use crate::cluster::{ApiError, Reviewed};
use crate::table::owner::Clock;

/// How long an accepted token is accepted without asking again: how long a deleted pod's token may still count.
const ACCEPTED_FOR: Duration = Duration::from_secs(60);

/// Most accepted tokens remembered: one a pod, for the pods that a replica hears of within a minute.
const ACCEPTED_MAX: usize = 16_384;

/// Who has the last word on a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AuthMode {
    /// The signature first, so that forged tokens cost no call, then a TokenReview.
    Hybrid,
    /// A TokenReview only, where the API server's keys cannot be read.
    TokenReview,
    /// The signature only; the watch of pods stands in for the review.
    Jwks,
}

/// Why a token was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthError {
    /// Its own text speaks against it.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Its signature does, or the keys are not to be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The API server refused it.
    #[error("the Kubernetes API does not accept the token: {0}")]
    Rejected(Arc<str>),
    /// The API server could not be asked.
    #[error("the Kubernetes API cannot review the token now")]
    Unavailable(#[source] Option<ApiError>),
    /// Too many reviews are waited for.
    #[error("too many tokens wait for their review")]
    Overloaded,
}

impl AuthError {
    /// Whether the token may still be good: nobody could say.
    pub const fn is_undecided(&self) -> bool {
        match self {
            Self::Token(_) | Self::Rejected(_) => false,
            Self::Key(error) => matches!(error, KeyError::Unavailable),
            Self::Unavailable(_) | Self::Overloaded => true,
        }
    }

    /// The metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Token(error) => error.label(),
            Self::Key(error) => error.label(),
            Self::Rejected(_) => "rejected",
            Self::Unavailable(_) => "unavailable",
            Self::Overloaded => "overloaded",
        }
    }
}

/// Whom a reviewed token speaks for.
#[derive(Debug, Clone)]
pub struct Caller {
    user: Arc<Reviewed>,
    expires_seconds: u64,
}

impl Caller {
    /// The user by the API server's word, for authorisation.
    pub fn user(&self) -> &Reviewed {
        &self.user
    }

    /// When the token ends, in seconds since the epoch.
    pub fn expires_seconds(&self) -> u64 {
        self.expires_seconds
    }
}

/// A token that was accepted: what it says of its bearer holds.
#[derive(Debug, Clone)]
pub(super) struct VerifiedToken {
    subject: Subject,
    expires_seconds: u64,
}

impl VerifiedToken {
    pub(super) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(super) fn expires_seconds(&self) -> u64 {
        self.expires_seconds
    }

    #[cfg(test)]
    pub(super) fn assumed(subject: Subject, expires_seconds: u64) -> Self {
        Self { subject, expires_seconds }
    }
}

/// What a token is to be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To vouch for an event; the ownership check follows.
    Event,
    /// To read. Always reviewed: nothing else would notice that its pod is gone.
    Query,
}

/// Decides on tokens.
pub struct Authenticator {
    mode: AuthMode,
    issuers: ArcSwap<Vec<String>>,
    /// Whether the issuers are configured, known from the API server, or not to be had from it.
    issuers_settled: AtomicBool,
    kubernetes: Kubernetes,
    clock: Clock,
    keys: Option<KeyStore>,
    /// With the API server's word where that will be asked for again.
    accepted: Mutex<Cache<TokenHash, Option<Arc<Reviewed>>>>,
    reviews: Reviews,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Authenticator {
    pub(super) fn new(config: &IngestConfig, kubernetes: Kubernetes, clock: Clock) -> Self {
        Self {
            mode: config.auth,
            issuers: ArcSwap::from_pointee(config.issuers.clone()),
            issuers_settled: AtomicBool::new(!config.issuers.is_empty()),
            keys: (config.auth != AuthMode::TokenReview).then(|| KeyStore::new(kubernetes.clone(), clock)),
            reviews: Reviews::new(
                kubernetes.clone(),
                clock,
                (config.reviews_in_flight, config.reviews_waiting),
                ACCEPTED_FOR,
            ),
            kubernetes,
            clock,
            accepted: Mutex::new(Cache::new(ACCEPTED_MAX)),
        }
    }

    /// Whom the token of a query's caller speaks for. It need not be a pod's, and it is reviewed in every mode.
    ///
    /// # Errors
    /// [`AuthError`]; see [`AuthError::is_undecided`].
    pub async fn authenticate(&self, token: &str) -> Result<Caller, AuthError> {
        let token = self.read(token)?;
        let expires_seconds = token.expires_seconds();
        let user = self.decide(&token, Purpose::Query).await;
        let user = counted(user)?.ok_or(AuthError::Unavailable(None))?;
        Ok(Caller { user, expires_seconds })
    }

    /// Reads the token of an event: step 2.
    pub(super) fn read_of_pod<'t>(&self, token: &'t str) -> Result<UnverifiedToken<'t>, AuthError> {
        let token = self.read(token)?;
        if token.unverified_subject().pod.is_none() {
            return counted(Err(TokenError::NotOfAPod.into()));
        }
        Ok(token)
    }

    /// Decides on the token of an event: steps 3 to 5.
    pub(super) async fn verify(&self, token: &UnverifiedToken<'_>) -> Result<VerifiedToken, AuthError> {
        let decided = self.decide(token, Purpose::Event).await;
        counted(decided)?;
        Ok(VerifiedToken { subject: token.unverified_subject().clone(), expires_seconds: token.expires_seconds() })
    }

    /// Fetches the keys, and the issuer if none is configured. True when what this mode needs is there.
    pub(super) async fn warm_up(&self) -> bool {
        let Some(keys) = &self.keys else { return true };
        let ready = keys.warm_up().await;
        self.discover_issuer().await;
        ready
    }

    /// Drops what has ended, and fetches the keys anew when they are old.
    pub(super) async fn sweep(&self) {
        let accepted = {
            let mut accepted = locked(&self.accepted);
            accepted.drop_ended(self.clock.now().uptime);
            accepted.len()
        };
        gauge!("podlight_auth_cache_entries", "cache" => "accepted").set(as_gauge(accepted));
        self.reviews.sweep();
        if let Some(keys) = &self.keys {
            keys.refresh().await;
            self.discover_issuer().await;
        }
    }

    async fn discover_issuer(&self) {
        if self.issuers_settled.load(Ordering::Relaxed) {
            return;
        }
        match self.kubernetes.fetch_issuer().await {
            Ok(issuer) => {
                self.issuers.store(Arc::new(issuer.into_iter().collect()));
                self.issuers_settled.store(true, Ordering::Relaxed);
            }
            Err(error) => {
                warn!(error = %super::chain(&error), "cannot learn the cluster's issuer; any is accepted whose key verifies");
                // What is forbidden stays so; what failed may work at the next sweep.
                self.issuers_settled.store(matches!(error, ApiError::OwnCredential), Ordering::Relaxed);
            }
        }
    }

    fn read<'t>(&self, token: &'t str) -> Result<UnverifiedToken<'t>, AuthError> {
        let read = UnverifiedToken::parse(token, &self.issuers.load(), self.clock.now().wall_ms);
        read.or_else(|error| counted(Err(error.into())))
    }

    async fn decide(&self, token: &UnverifiedToken<'_>, purpose: Purpose) -> Result<Option<Arc<Reviewed>>, AuthError> {
        let hash = token.hash();
        let now = self.clock.now();
        if let Some(held) = locked(&self.accepted).lookup(&hash, now.uptime)
            && (purpose == Purpose::Event || held.is_some())
        {
            counter!("podlight_auth_cache_hits_total", "cache" => "accepted").increment(1);
            return Ok(held.clone());
        }
        if let Some(keys) = &self.keys {
            keys.verify(token).await?;
        }
        let reviewed = match (purpose, self.mode) {
            (Purpose::Event, AuthMode::Jwks) => None,
            (Purpose::Event, AuthMode::Hybrid | AuthMode::TokenReview) | (Purpose::Query, _) => {
                Some(self.reviews.review(hash, token).await?)
            }
        };
        let now = self.clock.now();
        if token.lifetime(now.wall_ms).is_zero() {
            // While it waited.
            return Err(TokenError::Expired.into());
        }
        let decided_at = reviewed.as_ref().map_or(now.uptime, |word| word.at);
        let until = (decided_at + ACCEPTED_FOR).min(now.uptime + token.lifetime(now.wall_ms));
        let user = reviewed.map(|word| word.user).filter(|_| purpose == Purpose::Query);
        locked(&self.accepted).insert(hash, user.clone(), until, now.uptime);
        Ok(user)
    }
}

fn counted<T>(decided: Result<T, AuthError>) -> Result<T, AuthError> {
    let result = decided.as_ref().err().map_or("accepted", AuthError::label);
    counter!("podlight_auth_total", "result" => result).increment(1);
    decided
}
