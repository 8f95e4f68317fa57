//! The wire, byte for byte: golden vectors that no change may alter, round trips, and everything that must be
//! refused.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use podlight_proto::{
    Boot, Event, EventError, Kind, MAX_EVENT_BYTES, Order, PodRef, Port, Sequence, SigningKey, UnverifiedEvent,
    token_hash,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const SEED: [u8; 32] = *b"podlight golden vector seed 0001";
const ISSUED_AT: u64 = 1_760_000_000;
const NOW_MS: u64 = ISSUED_AT * 1000 + 250;
const TOKEN: &str = "header.claims.signature";

fn event(kind: Kind) -> Event {
    let event = Event {
        pod: PodRef::new("shop", "web-7d4b9", "0b8e1a52-6f0c-4c2b-9d5e-3f1f6a7c8d90").expect("valid"),
        order: Order {
            boot: Boot::try_from(1_759_999_990_123).expect("in range"),
            seq: Sequence::try_from(2).expect("in range"),
        },
        kind,
        revision: "7d4b9".into(),
        addresses: vec!["fd00::7".parse().expect("ip"), "10.1.2.3".parse().expect("ip")],
        ports: vec![Port { name: "http".into(), port: 8080 }],
        ready: kind == Kind::Ready,
        observed_at_ms: ISSUED_AT * 1000 - 5,
    };
    event.normalized().expect("valid")
}

fn golden() -> [(&'static str, &'static str, Event, Option<&'static str>); 4] {
    [
        ("ready", include_str!("golden/ready.jws"), event(Kind::Ready), None),
        ("not-ready", include_str!("golden/not-ready.jws"), event(Kind::NotReady), Some(TOKEN)),
        ("draining", include_str!("golden/draining.jws"), event(Kind::Draining), None),
        ("heartbeat", include_str!("golden/heartbeat.jws"), event(Kind::Heartbeat), None),
    ]
}

#[test]
fn golden_events_are_signed_byte_for_byte() {
    let key = SigningKey::from_seed(&SEED);
    for (name, jws, event, token) in golden() {
        assert_eq!(key.sign(&event, ISSUED_AT, token), jws.trim_end(), "{name}");
    }
}

#[test]
fn golden_events_are_read_as_they_were_meant() {
    let key = SigningKey::from_seed(&SEED).public_key();
    for (name, jws, event, token) in golden() {
        let unverified = UnverifiedEvent::parse(jws.trim_end().as_bytes()).expect(name);
        assert_eq!(unverified.check_token(TOKEN).is_ok(), token.is_some(), "{name}");
        let fresh = unverified.verify().expect(name).fresh(NOW_MS).expect(name);
        assert_eq!((fresh.event(), fresh.key()), (&event, &key), "{name}");
    }
}

#[test]
fn the_key_of_the_golden_vectors_has_its_rfc_7638_thumbprint() {
    let thumbprint = SigningKey::from_seed(&SEED).public_key().thumbprint().to_string();
    assert_eq!(thumbprint, include_str!("golden/thumbprint").trim_end());
}

#[test]
fn ath_is_the_hash_of_rfc_9449() {
    // RFC 9449 §7.1: the access token and its hash.
    let token = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
    assert_eq!(token_hash(token), "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo");
}

/// An event as JSON, to be bent before it is signed.
struct Bent {
    pair: Ed25519KeyPair,
    header: Value,
    claims: Value,
}

impl Bent {
    fn new() -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&SEED).expect("32 bytes");
        let jws = include_str!("golden/ready.jws");
        let mut parts = jws.trim_end().split('.');
        let mut part = || {
            let json = BASE64URL.decode(parts.next().expect("three parts")).expect("base64url");
            serde_json::from_slice(&json).expect("JSON")
        };
        Self { pair, header: part(), claims: part() }
    }

    fn body(&mut self) -> &mut Value {
        &mut self.claims["events"]["https://podlight.dev/event/v1/ready"]
    }

    fn sign(&self) -> String {
        self.sign_text(&self.header.to_string(), &self.claims.to_string())
    }

    fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
        let signature = BASE64URL.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

fn judge(jws: &str) -> Result<Event, EventError> {
    Ok(UnverifiedEvent::parse(jws.as_bytes())?.verify()?.fresh(NOW_MS)?.into_event())
}

#[test]
fn what_is_bent_is_refused_with_its_reason() {
    assert_eq!(judge(&Bent::new().sign()), Ok(event(Kind::Ready)), "unbent");
    type Bend = fn(&mut Bent);
    let cases: &[(&str, Bend, &str)] = &[
        ("typ", |b| b.header["typ"] = json!("JWT"), "header"),
        ("alg none", |b| b.header["alg"] = json!("none"), "header"),
        ("alg HS256", |b| b.header["alg"] = json!("HS256"), "header"),
        ("crit", |b| b.header["crit"] = json!(["exp"]), "header"),
        ("crit null", |b| b.header["crit"] = Value::Null, "header"),
        ("b64", |b| b.header["b64"] = json!(true), "header"),
        ("no jwk", |b| b.header["jwk"] = Value::Null, "header"),
        ("kty", |b| b.header["jwk"]["kty"] = json!("EC"), "key"),
        ("crv", |b| b.header["jwk"]["crv"] = json!("X25519"), "key"),
        ("private part", |b| b.header["jwk"]["d"] = json!("AA"), "key"),
        ("other member in jwk", |b| b.header["jwk"]["kid"] = json!("a"), "header"),
        ("short x", |b| b.header["jwk"]["x"] = json!("AAAA"), "key"),
        ("another's key", |b| b.header["jwk"]["x"] = json!(BASE64URL.encode([9; 32])), "signature"),
        ("aud other", |b| b.claims["aud"] = json!("else"), "audience"),
        ("aud array", |b| b.claims["aud"] = json!(["podlight"]), "audience"),
        ("iss", |b| b.claims["iss"] = json!("/namespaces/shop/pods/web"), "shape"),
        ("iat fraction", |b| b.claims["iat"] = json!(1.5), "claims"),
        ("iat text", |b| b.claims["iat"] = json!("1760000000"), "claims"),
        ("iat old", |b| b.claims["iat"] = json!(ISSUED_AT - 31), "stale"),
        ("iat ahead", |b| b.claims["iat"] = json!(ISSUED_AT + 31), "stale"),
        ("jti", |b| b.claims["jti"] = json!("1-1"), "claims"),
        ("no events", |b| b.claims["events"] = json!({}), "claims"),
        ("two events", |b| b.claims["events"]["https://podlight.dev/event/v1/draining"] = json!({}), "claims"),
        ("boot 0", |b| b.body()["boot"] = json!(0), "claims"),
        ("seq 2^53", |b| b.body()["seq"] = json!(1_u64 << 53), "claims"),
        ("seq negative", |b| b.body()["seq"] = json!(-1), "claims"),
        ("seq missing", |b| drop(b.body().as_object_mut().expect("object").remove("seq")), "claims"),
        ("addresses empty", |b| b.body()["addresses"] = json!([]), "shape"),
        ("addresses 17", |b| b.body()["addresses"] = (1..18).map(|i| json!(format!("10.0.0.{i}"))).collect(), "shape"),
        ("zone id", |b| b.body()["addresses"] = json!(["fe80::1%eth0"]), "shape"),
        ("port 0", |b| b.body()["ports"] = json!([{"name": "a", "port": 0}]), "shape"),
        ("port 65536", |b| b.body()["ports"] = json!([{"name": "a", "port": 65536}]), "claims"),
        ("revision", |b| b.body()["revision"] = json!("a b"), "shape"),
        ("ready contradicts", |b| b.body()["ready"] = json!(false), "shape"),
    ];
    for (name, bend, label) in cases {
        let mut bent = Bent::new();
        bend(&mut bent);
        assert_eq!(judge(&bent.sign()).map_err(|e| e.label()), Err(*label), "{name}");
    }
}

#[test]
fn an_unknown_event_uri_is_refused() {
    let mut bent = Bent::new();
    let body = bent.body().clone();
    bent.claims["events"] = json!({"https://podlight.dev/event/v1/rEady": body});
    assert_eq!(judge(&bent.sign()).map_err(|e| e.label()), Err("claims"));
}

#[test]
fn a_boot_far_ahead_is_refused_since_it_would_lock_the_pod_out() {
    for (ahead_ms, fine) in [(86_400_000 - 1, true), (86_400_000 + 1000, false)] {
        let mut bent = Bent::new();
        bent.body()["boot"] = json!(NOW_MS + ahead_ms);
        bent.claims["jti"] = json!(format!("{}-2", NOW_MS + ahead_ms));
        assert_eq!(judge(&bent.sign()).is_ok(), fine, "{ahead_ms}");
    }
}

#[test]
fn a_state_from_the_future_began_when_the_event_was_signed() {
    let mut bent = Bent::new();
    bent.body()["observed_at_ms"] = json!(NOW_MS + 60_000);
    assert_eq!(judge(&bent.sign()).map(|e| e.observed_at_ms), Ok(ISSUED_AT * 1000));
}

#[test]
fn addresses_are_a_set_and_mapped_ones_are_ipv4() {
    let mut bent = Bent::new();
    bent.body()["addresses"] = json!(["::ffff:10.1.2.3", "10.1.2.3", "fd00:0::7"]);
    assert_eq!(judge(&bent.sign()).map(|e| e.addresses), Ok(event(Kind::Ready).addresses));
}

#[test]
fn structure_is_strict() {
    let bent = Bent::new();
    let (header, claims) = (bent.header.to_string(), bent.claims.to_string());
    let twice = claims.replacen("{\"aud\"", "{\"x\":1,\"x\":2,\"aud\"", 1);
    assert_ne!(twice, claims);
    let deep = claims.replacen("{\"aud\"", &format!("{{\"x\":{}{},\"aud\"", "[".repeat(40), "]".repeat(40)), 1);
    for (name, jws) in [
        ("repeated member", bent.sign_text(&header, &twice)),
        ("nested deeply", bent.sign_text(&header, &deep)),
        ("trailing bytes", bent.sign_text(&header, &format!("{claims} x"))),
        ("not JSON", bent.sign_text(&header, "claims")),
        ("not UTF-8", bent.sign_text(&header, &claims.replace("shop", "\u{fffd}"))),
        ("white space before", format!(" {}", bent.sign())),
        ("line end", format!("{}\n", bent.sign())),
        ("padding", bent.sign().replacen('.', "=.", 1)),
        ("two parts", "a.b".to_owned()),
        ("four parts", format!("{}.a", bent.sign())),
        ("empty", String::new()),
        ("standard alphabet", bent.sign().replace('_', "/").replace('-', "+") + "+/"),
    ] {
        assert!(judge(&jws).is_err(), "{name}");
    }
}

#[test]
fn sixteen_kibibytes_are_the_most() {
    let bent = Bent::new();
    let padded = |len: usize| {
        // A compact JWS cannot have every length; the pad goes where no decoder looks first.
        let jws = bent.sign();
        format!("{jws}{}", "A".repeat(len - jws.len()))
    };
    assert_eq!(judge(&padded(MAX_EVENT_BYTES + 1)), Err(EventError::TooLarge));
    assert_ne!(judge(&padded(MAX_EVENT_BYTES)), Err(EventError::TooLarge));
}

/// For the neutral point as key, the neutral point with 0 is a signature of everything.
#[test]
fn keys_of_small_order_are_refused_because_one_signature_fits_all() {
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut universal = [0; 64];
    universal[0] = 1;
    let key = UnparsedPublicKey::new(&ED25519, neutral);
    assert!(key.verify(b"anything", &universal).is_ok(), "the library itself does not refuse them");

    let points = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for point in points {
        let mut bytes: Vec<u8> =
            (0..64).step_by(2).map(|i| u8::from_str_radix(&point[i..i + 2], 16).expect("hex")).collect();
        for sign in [0, 0x80] {
            bytes[31] = bytes[31] & 0x7f | sign;
            let mut bent = Bent::new();
            bent.header["jwk"]["x"] = json!(BASE64URL.encode(&bytes));
            assert_eq!(judge(&bent.sign()).map_err(|e| e.label()), Err("key"), "{point} {sign}");
        }
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let pod =
        ("[a-z]([a-z0-9-]{0,20}[a-z0-9])?", "[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]{1,5})?", "[0-9a-f-]{1,36}");
    let integers = (1..=NOW_MS, 1..1_u64 << 53, 0..=NOW_MS);
    let port = ("[a-z0-9-]{0,15}", 1..=u16::MAX).prop_map(|(name, port)| Port { name, port });
    let lists = (
        prop::collection::vec(any::<std::net::IpAddr>(), 1..=16),
        prop::collection::vec(port, 0..8),
        "([A-Za-z0-9]([A-Za-z0-9_.-]{0,30}[A-Za-z0-9])?)?",
    );
    (pod, integers, lists, prop::sample::select(Kind::ALL.to_vec()), any::<bool>()).prop_map(
        |((namespace, name, uid), (boot, seq, observed_at_ms), (addresses, ports, revision), kind, alive)| {
            let event = Event {
                pod: PodRef::new(&namespace, &name, &uid).expect("valid"),
                order: Order {
                    boot: Boot::try_from(boot).expect("in range"),
                    seq: Sequence::try_from(seq).expect("in range"),
                },
                kind,
                revision,
                addresses,
                ports,
                ready: kind == Kind::Ready || kind == Kind::Heartbeat && alive,
                observed_at_ms,
            };
            event.normalized().expect("valid")
        },
    )
}

proptest! {
    #[test]
    fn what_is_signed_is_what_is_read(event in any_event(), seed in any::<[u8; 32]>(), token in prop::option::of("[ -~]{1,80}")) {
        let key = SigningKey::from_seed(&seed);
        let jws = key.sign(&event, ISSUED_AT, token.as_deref());
        let unverified = UnverifiedEvent::parse(jws.as_bytes()).expect("parses");
        if let Some(token) = &token {
            prop_assert_eq!(unverified.check_token(token), Ok(()));
            prop_assert!(unverified.check_token("another").is_err());
        }
        let verified = unverified.verify().expect("verifies");
        prop_assert_eq!(verified.key(), &key.public_key());
        prop_assert_eq!(verified.fresh(NOW_MS).expect("fresh").into_event(), event);
    }

    #[test]
    fn a_flipped_bit_never_passes(event in any_event(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let jws = SigningKey::from_seed(&SEED).sign(&event, ISSUED_AT, None);
        let mut bytes = jws.clone().into_bytes();
        bytes[at.index(jws.len())] ^= 1 << bit;
        let passed = UnverifiedEvent::parse(&bytes).and_then(UnverifiedEvent::verify);
        prop_assert!(passed.is_err());
    }

    #[test]
    fn nothing_from_the_network_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = UnverifiedEvent::parse(&bytes);
    }
}
