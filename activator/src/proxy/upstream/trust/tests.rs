use super::*;

fn ca() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&key).expect("signs").pem().into_bytes()
}

fn name(trust: &Trust, secret: Option<&str>) -> Name {
    trust.name(&"shop".into(), &"web.shop.svc".into(), secret.map(Arc::from).as_ref(), false).expect("a CA")
}

#[test]
fn a_secret_that_is_read_again_unchanged_keeps_connections_usable_and_another_ones_change_does_too() {
    let trust = Trust::open(None, None).expect("nothing to read");
    let (ours, theirs) = (ca(), ca());
    trust.set_secret("shop", "ours", Some(&ours)).expect("a CA");
    let verified = name(&trust, Some("ours"));
    trust.set_secret("shop", "ours", Some(&ours)).expect("a CA");
    trust.set_secret("shop", "theirs", Some(&theirs)).expect("a CA");
    trust.set_secret("shop", "theirs", None).expect("nothing to read");
    assert_eq!(name(&trust, Some("ours")), verified);
    trust.set_secret("shop", "ours", Some(&theirs)).expect("a CA");
    assert_ne!(name(&trust, Some("ours")), verified, "verified with a CA that is trusted no more");
}

#[test]
fn a_secret_that_becomes_unusable_leaves_the_last_good_one() {
    let trust = Trust::open(None, None).expect("nothing to read");
    trust.set_secret("shop", "ca", Some(&ca())).expect("a CA");
    let verified = name(&trust, Some("ca"));
    assert!(trust.set_secret("shop", "ca", Some(b"nonsense")).is_err());
    assert_eq!(name(&trust, Some("ca")), verified);
    assert!(
        trust.name(&"other".into(), &"web.other.svc".into(), Some(&"ca".into()), false).is_err(),
        "another namespace's"
    );
}
