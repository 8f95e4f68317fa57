use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_700_000_000;

fn claims() -> Value {
    json!({
        "iss": "https://issuer", "sub": "system:serviceaccount:shop:web", "aud": ["podlight"],
        "exp": NOW + 600, "nbf": NOW, "iat": NOW,
        "kubernetes.io": {
            "namespace": "shop", "serviceaccount": {"name": "web", "uid": "s"}, "pod": {"name": "web-0", "uid": "u-1"},
        },
    })
}

fn token(header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| BASE64URL.encode(part.to_string());
    format!("{}.{}.{}", encode(header), encode(claims), BASE64URL.encode("signature"))
}

fn parse(header: &Value, claims: &Value) -> Result<Subject, TokenError> {
    let token = token(header, claims);
    UnverifiedToken::parse(&token, &["https://issuer".into()], NOW * 1000).map(|t| t.subject)
}

fn rs256() -> Value {
    json!({"alg": "RS256", "kid": "k"})
}

fn with(path: &str, value: Value) -> Value {
    let mut claims = claims();
    *claims.pointer_mut(path).expect("a claim") = value;
    claims
}

fn without(object: &str, name: &str) -> Value {
    let mut claims = claims();
    claims.pointer_mut(object).and_then(Value::as_object_mut).expect("an object").remove(name);
    claims
}

#[test]
fn a_projected_token_reads_as_its_pod() {
    let subject = parse(&rs256(), &claims()).expect("well formed");
    assert!(subject.is_pod(&PodRef::new("shop", "web-0", "u-1").expect("a pod")));
    for (namespace, name, uid) in [("other", "web-0", "u-1"), ("shop", "web-1", "u-1"), ("shop", "web-0", "u-2")] {
        assert!(!subject.is_pod(&PodRef::new(namespace, name, uid).expect("a pod")));
    }
    assert_eq!(subject.service_account, "web");
    assert!(parse(&rs256(), &with("/aud", json!("podlight"))).is_ok());
    assert!(parse(&rs256(), &with("/aud", json!(["a", "podlight"]))).is_ok());
}

#[test]
fn a_token_of_any_configured_issuer_is_taken_and_no_other() {
    let issuers = ["https://old".to_owned(), "https://issuer".to_owned()];
    for (issuer, taken) in [("https://old", true), ("https://issuer", true), ("https://elsewhere", false)] {
        let token = token(&rs256(), &with("/iss", json!(issuer)));
        let parsed = UnverifiedToken::parse(&token, &issuers, NOW * 1000).map(|_| ());
        assert_eq!(parsed, if taken { Ok(()) } else { Err(TokenError::Issuer) }, "{issuer}");
    }
}

#[test]
fn algorithms_off_the_list_are_refused_by_name() {
    for alg in ["none", "None", "HS256", "HS384", "HS512", "EdDSA", "ES512", "rs256", ""] {
        assert_eq!(parse(&json!({"alg": alg, "kid": "k"}), &claims()), Err(TokenError::Algorithm), "{alg}");
    }
    for alg in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384"] {
        assert!(parse(&json!({"alg": alg, "kid": "k"}), &claims()).is_ok(), "{alg}");
    }
}

#[test]
fn claims_that_are_wrong_are_refused_each_for_its_reason() {
    for (claims, expected) in [
        (with("/aud", json!("https://kubernetes.default.svc")), TokenError::Audience),
        (with("/aud", json!([])), TokenError::Audience),
        (with("/exp", json!(NOW)), TokenError::Expired),
        (with("/nbf", json!(NOW + 31)), TokenError::NotYetValid),
        (with("/iss", json!("https://issuer/")), TokenError::Issuer),
        (with("/sub", json!("system:serviceaccount:shop:other")), TokenError::Subject),
        (with("/sub", json!("system:serviceaccount:shop:web:x")), TokenError::Subject),
        (with("/kubernetes.io/namespace", json!("other")), TokenError::Subject),
        (with("/kubernetes.io/serviceaccount/name", json!("other")), TokenError::Subject),
    ] {
        assert_eq!(parse(&rs256(), &claims), Err(expected));
    }
    assert!(parse(&rs256(), &with("/exp", json!(NOW + 1))).is_ok(), "no leeway, but not expired");
    assert!(parse(&rs256(), &with("/nbf", json!(NOW + 30))).is_ok());
}

#[test]
fn missing_and_mistyped_claims_are_refused_not_skipped() {
    let string_exp = with("/exp", json!((NOW + 600).to_string()));
    let float_exp = with("/exp", json!(1.8e9));
    let string_nbf = with("/nbf", json!("0"));
    for claims in [
        string_exp,
        float_exp,
        string_nbf,
        without("", "exp"),
        without("", "aud"),
        without("", "iss"),
        without("", "sub"),
        without("", "kubernetes.io"),
        without("/kubernetes.io", "namespace"),
        without("/kubernetes.io", "serviceaccount"),
        without("/kubernetes.io/pod", "uid"),
        without("/kubernetes.io/pod", "name"),
        with("/kubernetes.io/pod/uid", json!("not a uid")),
        json!([]),
    ] {
        assert!(matches!(parse(&rs256(), &claims), Err(TokenError::Claims(_))), "{claims}");
    }
    assert_eq!(parse(&rs256(), &without("/kubernetes.io", "pod")).expect("of no pod").pod, None);
}

#[test]
fn headers_without_kid_or_with_crit_are_refused() {
    for header in [
        json!({"alg": "RS256"}),
        json!({"alg": "RS256", "kid": ""}),
        json!({"kid": "k"}),
        json!({"alg": "RS256", "kid": "k", "crit": ["b64"]}),
    ] {
        assert!(matches!(parse(&header, &claims()), Err(TokenError::Header(_))), "{header}");
    }
}

#[test]
fn what_is_not_three_base64url_parts_is_refused() {
    let good = token(&rs256(), &claims());
    let long = format!("{good}{}", "A".repeat(MAX_TOKEN_BYTES));
    let read = |text: &str| UnverifiedToken::parse(text, &[], NOW * 1000).map(|t| t.expires_seconds);
    assert_eq!(read(&good), Ok(NOW + 600));
    assert_eq!(read(&long), Err(TokenError::TooLong));
    for bad in ["", "a", "a.b", "a.b.c", &format!("{good}.x"), &format!("{good}="), &good.replace('.', " . ")] {
        assert_eq!(read(bad), Err(TokenError::NotCompact), "{bad}");
    }
}
