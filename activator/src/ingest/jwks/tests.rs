use std::sync::Arc;

use serde_json::{Value, json};

use super::super::scripted::{Scripted, TokenKey, claims, jwks, pod};
use super::*;

fn read(token: &str) -> UnverifiedToken<'_> {
    UnverifiedToken::parse(token, &[], 1_000_000).expect("well formed")
}

fn good_claims() -> Value {
    claims(&pod("web-0"), "web", 1_000)
}

fn store(script: &Arc<Scripted>) -> KeyStore {
    KeyStore::new(Kubernetes::Scripted(Arc::clone(script)), Clock::start())
}

fn fetches(script: &Scripted) -> usize {
    script.key_fetches.load(Ordering::SeqCst)
}

#[test]
fn rsa_pss_and_curve_signatures_verify_under_their_own_key_alone() {
    let keys = KeySet::parse(&jwks(&[TokenKey::First, TokenKey::Curve])).expect("keys");
    let check = |token: String| keys.verify(&read(&token));
    assert_eq!(check(TokenKey::First.mint(&good_claims())), Ok(()));
    assert_eq!(check(TokenKey::Curve.mint(&good_claims())), Ok(()));
    assert_eq!(check(TokenKey::First.sign(&json!({"alg": "PS256", "kid": "first"}), &good_claims())), Ok(()));
    // The right kid, another key.
    assert_eq!(
        check(TokenKey::Second.sign(&json!({"alg": "RS256", "kid": "first"}), &good_claims())),
        Err(KeyError::Signature)
    );
    // A kid of the other family.
    assert_eq!(
        check(TokenKey::First.sign(&json!({"alg": "RS256", "kid": "curve"}), &good_claims())),
        Err(KeyError::Algorithm)
    );
    assert_eq!(
        check(TokenKey::Curve.sign(&json!({"alg": "ES256", "kid": "first"}), &good_claims())),
        Err(KeyError::Algorithm)
    );
    assert_eq!(check(TokenKey::Second.mint(&good_claims())), Err(KeyError::Unknown));
    let mut tampered = TokenKey::First.mint(&good_claims());
    let other = BASE64URL.encode(claims(&pod("web-1"), "web", 1_000).to_string());
    let middle = tampered.find('.').expect("a dot") + 1..tampered.rfind('.').expect("a dot");
    tampered.replace_range(middle, &other);
    assert_eq!(check(tampered), Err(KeyError::Signature));
}

#[test]
fn an_alg_member_binds_the_key_to_it() {
    let mut bound = TokenKey::First.jwk();
    bound["alg"] = json!("RS256");
    let keys = KeySet::parse(json!({"keys": [bound]}).to_string().as_bytes()).expect("keys");
    assert_eq!(keys.verify(&read(&TokenKey::First.mint(&good_claims()))), Ok(()));
    let pss = TokenKey::First.sign(&json!({"alg": "PS256", "kid": "first"}), &good_claims());
    assert_eq!(keys.verify(&read(&pss)), Err(KeyError::Algorithm));
}

#[test]
fn documents_without_a_usable_key_are_refused_and_odd_keys_left_out() {
    for bad in ["", "[]", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","kid":"a","k":"AAAA"}]}"#] {
        assert!(KeySet::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    let mut encryption = TokenKey::First.jwk();
    encryption["use"] = json!("enc");
    let mut nameless = TokenKey::First.jwk();
    nameless.as_object_mut().expect("an object").remove("kid");
    for odd in [encryption, nameless, json!(7), json!({"kty": "RSA", "kid": "first", "n": "!", "e": "AQAB"})] {
        let both = json!({"keys": [odd, TokenKey::Curve.jwk()]}).to_string();
        let keys = KeySet::parse(both.as_bytes()).expect("one key");
        assert_eq!(keys.by_id.len(), 1);
        assert!(keys.by_id.contains_key("curve"));
    }
}

#[test]
fn fetches_keep_their_distance() {
    let at = Duration::from_secs;
    let mut fetches = Fetches::default();
    assert!(fetches.due(Occasion::First, at(0)));
    fetches.begin(Occasion::First, at(0));
    assert!(!fetches.due(Occasion::First, Duration::from_millis(999)));
    assert!(fetches.due(Occasion::First, at(1)));
    assert!(!fetches.due(Occasion::Age, at(299)));
    assert!(fetches.due(Occasion::Age, at(300)));
    fetches.last_failed = true;
    assert!(fetches.due(Occasion::Age, at(30)), "a failed fetch is made up for soon");
    fetches.last_failed = false;
    assert!(fetches.due(Occasion::UnknownKey, at(1)), "the first fetch was not for an unknown key");
    fetches.begin(Occasion::UnknownKey, at(1));
    assert!(!fetches.due(Occasion::UnknownKey, at(60)));
    assert!(fetches.due(Occasion::UnknownKey, at(61)));
    fetches.begin(Occasion::Age, at(61));
    assert!(fetches.due(Occasion::UnknownKey, at(61)), "a periodic fetch does not use up the one for unknown keys");
}

#[tokio::test]
async fn a_rotated_key_is_found_by_one_fetch() {
    let script = Scripted::new();
    let store = store(&script);
    assert!(store.warm_up().await);
    script.set_keys(Some(&[TokenKey::Second, TokenKey::First]));
    let token = TokenKey::Second.mint(&good_claims());
    let token = read(&token);
    assert_eq!(futures::join!(store.verify(&token), store.verify(&token)), (Ok(()), Ok(())));
    assert_eq!(fetches(&script), 2);
    let old = TokenKey::First.mint(&good_claims());
    assert_eq!(store.verify(&read(&old)).await, Ok(()));
}

#[tokio::test]
async fn a_flood_of_unknown_keys_causes_one_fetch() {
    let script = Scripted::new();
    let store = store(&script);
    assert!(store.warm_up().await);
    let tokens: Vec<String> = (0..5_000)
        .map(|n| {
            let header = json!({"alg": "RS256", "kid": format!("made-up-{n}")});
            format!("{}.{}.AAAA", BASE64URL.encode(header.to_string()), BASE64URL.encode(good_claims().to_string()))
        })
        .collect();
    let verdicts = futures::future::join_all(tokens.iter().map(|token| async {
        let token = read(token);
        store.verify(&token).await
    }));
    assert!(verdicts.await.iter().all(|verdict| *verdict == Err(KeyError::Unknown)));
    assert_eq!(fetches(&script), 2, "the first, and one for all of them");
}

#[tokio::test]
async fn a_failed_fetch_keeps_the_keys_and_decides_nothing() {
    let script = Scripted::new();
    let store = store(&script);
    script.set_keys(None);
    let (first, second) = (TokenKey::First.mint(&good_claims()), TokenKey::Second.mint(&good_claims()));
    assert_eq!(store.verify(&read(&first)).await, Err(KeyError::Unavailable));
    assert_eq!(store.verify(&read(&first)).await, Err(KeyError::Unavailable));
    assert_eq!(fetches(&script), 1, "without keys, one attempt a second");

    let store = self::store(&script);
    script.set_keys(Some(&[TokenKey::First]));
    assert!(store.warm_up().await);
    script.set_keys(None);
    assert_eq!(store.verify(&read(&second)).await, Err(KeyError::Unavailable));
    assert_eq!(store.verify(&read(&first)).await, Ok(()));
}
