use std::os::unix::fs::PermissionsExt;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use jsonwebtoken::jwk::JwkSet;
use serde_json::Value;

use super::*;

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn request() -> MintRequest {
    MintRequest {
        namespace: "shop".into(),
        service_account: "web".into(),
        pod_name: "web-1".into(),
        pod_uid: PodUid::new("u-1").unwrap(),
        audience: AUDIENCE.into(),
        seconds: 3600,
        issuer: DEFAULT_ISSUER.into(),
    }
}

/// Verifies as ingest does: by the `kid` in the key set.
fn decode(key: &IssuerKey, token: &str) -> Value {
    let keys: JwkSet = serde_json::from_slice(&key.jwks()).unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let jwk = keys.find(&header.kid.unwrap()).unwrap();
    let mut wanted = Validation::new(header.alg);
    wanted.set_audience(&[AUDIENCE]);
    jsonwebtoken::decode::<Value>(token, &DecodingKey::from_jwk(jwk).unwrap(), &wanted).unwrap().claims
}

#[test]
fn tokens_of_both_kinds_of_key_verify_with_the_key_set() {
    let rsa: Pkcs8V1Der<'_> = RsaKeyPair::generate(KeySize::Rsa2048).unwrap().as_der().unwrap();
    let rsa = IssuerKey::from_pem(to_pem(rsa.as_ref()).as_bytes()).unwrap();
    let p256 = IssuerKey::from_pem(generate().unwrap().as_bytes()).unwrap();
    for key in [rsa, p256] {
        let claims = decode(&key, &key.mint(&request(), now()).unwrap());
        assert_eq!(claims["sub"], "system:serviceaccount:shop:web");
        assert_eq!(claims["aud"], json!(["podlight"]));
        assert_eq!(claims["iss"], DEFAULT_ISSUER);
        assert_eq!(claims["kubernetes.io"]["namespace"], "shop");
        assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": "web-1", "uid": "u-1"}));
        assert_eq!(claims["kubernetes.io"]["serviceaccount"]["name"], "web");
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
    }
}

#[test]
fn a_key_is_made_once_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("issuer.pem");
    let made = IssuerKey::load_or_create(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(IssuerKey::load_or_create(&path).unwrap().jwks(), made.jwks());
    assert!(matches!(IssuerKey::load_or_create(&path.join("x")), Err(TokenError::File { .. })));
    std::fs::write(&path, "not a key").unwrap();
    assert!(matches!(IssuerKey::load_or_create(&path), Err(TokenError::Key)));
}

#[test]
fn a_verified_token_speaks_as_the_api_server_would_say() {
    let key = IssuerKey::from_pem(generate().unwrap().as_bytes()).unwrap();
    let reviewed = key.verify(&key.mint(&request(), now()).unwrap(), DEFAULT_ISSUER).unwrap();
    let uid = PodUid::new("u-1").unwrap();
    assert_eq!(reviewed, Reviewed::of_service_account("shop", "web", Some(("web-1", &uid))));
    assert_eq!(reviewed.username, "system:serviceaccount:shop:web");
}

#[test]
fn other_tokens_do_not_verify() {
    let key = IssuerKey::from_pem(generate().unwrap().as_bytes()).unwrap();
    let stranger = IssuerKey::from_pem(generate().unwrap().as_bytes()).unwrap();
    let good = request();
    let cases = [
        ("another key", stranger.mint(&good, now()).unwrap()),
        ("another audience", key.mint(&MintRequest { audience: "api".into(), ..good.clone() }, now()).unwrap()),
        ("another issuer", key.mint(&MintRequest { issuer: "x".into(), ..good.clone() }, now()).unwrap()),
        ("expired", key.mint(&MintRequest { seconds: 10, ..good.clone() }, now() - 11).unwrap()),
        ("not yet", key.mint(&good, now() + 60).unwrap()),
        ("garbage", "a.b.c".to_owned()),
    ];
    for (name, token) in cases {
        assert!(key.verify(&token, DEFAULT_ISSUER).is_err(), "{name}");
    }
}

#[test]
fn made_up_uids_are_uuids_and_always_the_same() {
    let uid = derived_uuid(&["Pod", "shop", "web-1"]);
    assert_eq!(uid, derived_uuid(&["Pod", "shop", "web-1"]));
    assert_ne!(uid, derived_uuid(&["Pod", "shop", "web-2"]));
    assert_eq!((uid.len(), uid.as_bytes()[14], uid.as_bytes()[8]), (36, b'8', b'-'));
    assert!(matches!(uid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    assert_ne!(random_uuid().unwrap(), random_uuid().unwrap());
}
