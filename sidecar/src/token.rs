//! The projected ServiceAccount token, re-read as the kubelet rotates it. The last good token stays when the file
//! cannot be read. Claims are read for their times alone: to verify the token is the activator's part.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use metrics::{counter, gauge};
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::file::WatchedFile;

/// A token with less left than this is warned about.
const EXPIRING_SECONDS: u64 = 300;

/// The kubelet renews a token at 80 % of its life, up to 10 s later for jitter, and writes it at its next sync of
/// the pod, a minute or so. After this much more, rotation is stuck (kubernetes#138689).
const ROTATION_MARGIN_SECONDS: u64 = 120;

/// A token as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Token {
    text: String,
    issued_at: u64,
    expires_at: u64,
}

/// Why a file's content is no token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of base64url that fit into a header.
    #[error("it is not a compact JWT")]
    NotJwt,
    /// The payload has no `iat` and `exp`.
    #[error("its claims have no iat and exp")]
    NoTimes,
}

/// How a token stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Fine,
    /// It should have been replaced by now.
    RotationStuck,
    /// Less than five minutes are left.
    Expiring,
    /// No activator takes it any more.
    Expired,
}

impl Token {
    /// Reads a token's text, white space around it aside.
    ///
    /// # Errors
    /// [`TokenError`]; the text is never part of it.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        #[derive(Deserialize)]
        struct Times {
            iat: u64,
            exp: u64,
        }
        let text = text.trim();
        let [_, claims, _] = <[&str; 3]>::try_from(text.split('.').collect::<Vec<_>>())
            .ok()
            .filter(|_| HeaderValue::from_str(text).is_ok())
            .ok_or(TokenError::NotJwt)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::NotJwt)?;
        let Times { iat, exp } = serde_json::from_slice(&claims).map_err(|_| TokenError::NoTimes)?;
        Ok(Self { text: text.to_owned(), issued_at: iat, expires_at: exp })
    }

    /// The token itself.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Seconds until it expires, negative afterwards.
    pub fn seconds_left(&self, now_seconds: u64) -> i64 {
        self.expires_at.cast_signed().saturating_sub(now_seconds.cast_signed())
    }

    /// Seconds since the kubelet should have replaced it; 0 before.
    pub fn rotation_overdue(&self, now_seconds: u64) -> u64 {
        let life = self.expires_at.saturating_sub(self.issued_at);
        let rotation = self.issued_at.saturating_add(life / 5 * 4).saturating_add(ROTATION_MARGIN_SECONDS);
        now_seconds.saturating_sub(rotation)
    }

    /// How it stands at a time.
    pub fn health(&self, now_seconds: u64) -> Health {
        if now_seconds >= self.expires_at {
            Health::Expired
        } else if now_seconds + EXPIRING_SECONDS > self.expires_at {
            Health::Expiring
        } else if self.rotation_overdue(now_seconds) > 0 {
            Health::RotationStuck
        } else {
            Health::Fine
        }
    }
}

/// The token file, looked at whenever a token is used and now and then besides.
#[derive(Debug, Clone)]
pub struct Tokens {
    file: Arc<Mutex<Looking>>,
    current: watch::Sender<Option<Arc<Token>>>,
}

#[derive(Debug)]
struct Looking {
    file: WatchedFile,
    warned: Health,
}

impl Tokens {
    /// Watches a file, which need not be there yet.
    pub fn new(path: &Path) -> Self {
        let looking = Looking { file: WatchedFile::new(path), warned: Health::Fine };
        Self { file: Arc::new(Mutex::new(looking)), current: watch::Sender::new(None) }
    }

    /// Follows the token as it rotates.
    pub fn follow(&self) -> watch::Receiver<Option<Arc<Token>>> {
        self.current.subscribe()
    }

    /// The newest token, if there ever was one. Warns once of everything that is wrong with it.
    pub fn current(&self, now_seconds: u64) -> Option<Arc<Token>> {
        let mut looking = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = looking.file.changed() {
            self.take(looking.file.path(), content);
        }
        let token = self.current.borrow().clone()?;
        gauge!("podlight_sidecar_token_expiry_seconds").set(token.seconds_left(now_seconds) as f64);
        gauge!("podlight_sidecar_token_rotation_overdue_seconds").set(token.rotation_overdue(now_seconds) as f64);
        let health = token.health(now_seconds);
        if health != looking.warned {
            looking.warned = health;
            warn_of(health, token.seconds_left(now_seconds));
        }
        Some(token)
    }

    fn take(&self, path: &Path, content: std::io::Result<Vec<u8>>) {
        let path = path.display();
        let token = match content {
            Ok(bytes) => Token::parse(&String::from_utf8_lossy(&bytes)),
            Err(error) => return warn!(%path, %error, "the token file cannot be read; the last token stays in use"),
        };
        match token {
            Ok(token) => {
                info!(%path, expires_at = token.expires_at, "token read");
                counter!("podlight_sidecar_tokens_read_total").increment(1);
                self.current.send_if_modified(|current| {
                    let other = current.as_deref() != Some(&token);
                    *current = Some(Arc::new(token));
                    other
                });
            }
            Err(error) => warn!(%path, %error, "the token file holds no token; the last token stays in use"),
        }
    }
}

fn warn_of(health: Health, seconds_left: i64) {
    match health {
        Health::Fine => info!(seconds_left, "the token was rotated"),
        Health::RotationStuck => warn!(seconds_left, "the token should have been rotated by now"),
        Health::Expiring => warn!(seconds_left, "the token expires soon and has not been rotated"),
        Health::Expired => warn!(seconds_left, "the token has expired: ready will be refused, the rest still works"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(iat: u64, exp: u64, signature: &str) -> String {
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"iat":{iat},"exp":{exp}}}"#));
        format!("e30.{claims}.{signature}")
    }

    #[test]
    fn a_token_tells_its_times_and_nothing_else_is_one() {
        let read = Token::parse(&format!(" {}\n", token(10, 3610, "sig"))).expect("a token");
        assert_eq!((read.as_str(), read.seconds_left(3700)), (token(10, 3610, "sig").as_str(), -90));
        for (bad, error) in [
            ("", TokenError::NotJwt),
            ("a.b", TokenError::NotJwt),
            ("a.!.c", TokenError::NotJwt),
            ("a\n.e30.c", TokenError::NotJwt),
            ("a.e30.c", TokenError::NoTimes),
        ] {
            assert_eq!(Token::parse(bad), Err(error), "{bad:?}");
        }
    }

    #[test]
    fn health_follows_the_kubelets_schedule() {
        let token = Token::parse(&token(0, 3600, "sig")).expect("a token");
        for (now, health) in [
            (0, Health::Fine),
            (3000, Health::Fine),
            (3001, Health::RotationStuck),
            (3300, Health::RotationStuck),
            (3301, Health::Expiring),
            (3600, Health::Expired),
        ] {
            assert_eq!(token.health(now), health, "at {now}");
            assert_eq!(token.rotation_overdue(now), now.saturating_sub(3000), "at {now}");
        }
    }

    #[test]
    fn a_rotation_is_noticed_and_a_bad_file_leaves_the_last_token() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let tokens = Tokens::new(&path);
        let mut follow = tokens.follow();
        assert_eq!(tokens.current(0), None);
        for signature in ["first", "second"] {
            std::fs::write(dir.path().join("new"), token(0, 3600, signature)).expect("written");
            std::fs::rename(dir.path().join("new"), &path).expect("swapped");
            assert!(tokens.current(0).expect("a token").as_str().ends_with(signature));
            assert!(follow.has_changed().expect("open"));
            follow.borrow_and_update();
        }
        std::fs::write(&path, "garbage").expect("written");
        assert!(tokens.current(0).expect("the last one").as_str().ends_with("second"));
        std::fs::remove_file(&path).expect("removed");
        assert!(tokens.current(0).expect("the last one").as_str().ends_with("second"));
        assert!(!follow.has_changed().expect("open"));
    }
}
