use super::*;

const START: Duration = Duration::from_secs(1_800_000_000);

fn at(days: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + START + DAY * u32::try_from(days).expect("few")
}

fn names() -> Vec<String> {
    ["podlight-webhook.podlight-system.svc", "*.podlight-activator-events.podlight-system.svc", "127.0.0.1"]
        .map(str::to_owned)
        .into()
}

fn first() -> Authority {
    Authority::due(None, at(0)).expect("makes").value
}

fn trusts(bundle: &str, server: &Pair, now: SystemTime) -> bool {
    CertificateDer::pem_slice_iter(bundle.as_bytes()).count() > 0
        && bundle.split_inclusive("-----END CERTIFICATE-----\n").any(|certificate| {
            let ca = Pair { certificate: certificate.to_owned(), key: String::new() };
            names().iter().all(|name| accepted(&ca, server, name, now))
        })
}

#[test]
fn what_is_good_stays() {
    let authority = first();
    for day in [0, 244] {
        let due = Authority::due(Some(&authority), at(day)).expect("looks");
        assert_eq!(due, Due { value: authority.clone(), changed: false });
    }
    let server = authority.server_due(None, &names(), at(0)).expect("makes").value;
    assert!(trusts(&authority.bundle(), &server, at(0)) && trusts(&authority.bundle(), &server, at(89)));
    assert!(!trusts(&authority.bundle(), &server, at(91)), "it ends");
    assert!(!authority.server_due(Some(&server), &names(), at(59)).expect("looks").changed);
    assert!(authority.server_due(Some(&server), &names(), at(61)).expect("makes").changed, "a month before its end");
}

#[test]
fn a_certificate_for_other_names_by_another_ca_or_with_another_key_is_replaced() {
    let (authority, other) = (first(), first());
    let server = authority.server_due(None, &names(), at(0)).expect("makes").value;
    let due = |authority: &Authority, server: &Pair, names: &[String]| {
        authority.server_due(Some(server), names, at(0)).expect("makes").changed
    };
    assert!(due(&authority, &server, &["elsewhere.test".to_owned()]));
    assert!(due(&other, &server, &names()));
    let foreign = Pair { key: other.current.key.clone(), ..server.clone() };
    assert!(due(&authority, &foreign, &names()));
    for (certificate, key) in [("", ""), ("nonsense", "nonsense"), (server.certificate.as_str(), "")] {
        let broken = Pair { certificate: certificate.to_owned(), key: key.to_owned() };
        assert!(due(&authority, &broken, &names()), "{certificate}");
    }
}

#[test]
fn a_ca_that_cannot_be_used_or_has_ended_is_made_anew() {
    let authority = first();
    let broken =
        Authority { current: Pair { key: "nonsense".to_owned(), ..authority.current.clone() }, ..authority.clone() };
    assert!(Authority::due(Some(&broken), at(0)).expect("makes").changed);
    let anew = Authority::due(Some(&authority), at(365)).expect("makes").value;
    assert_ne!(anew.current, authority.current);
    assert!(anew.old.is_empty(), "nobody trusts what has ended");
}

#[test]
fn nobody_ever_meets_a_certificate_that_they_do_not_trust() {
    let mut authority = first();
    let mut server = authority.server_due(None, &names(), at(0)).expect("makes").value;
    // What a client has that was told a day before, late by as much as the overlap allows.
    let mut told = authority.bundle();
    let (mut signers, mut servers) = (vec![authority.current.clone()], 1);
    for day in 1..2000 {
        authority = Authority::due(Some(&authority), at(day)).expect("looks").value;
        let due = authority.server_due(Some(&server), &names(), at(day)).expect("looks");
        (server, servers) = (due.value, servers + usize::from(due.changed));
        assert!(trusts(&told, &server, at(day)), "on day {day} a server shows what yesterday's clients do not trust");
        assert!(trusts(&authority.bundle(), &server, at(day)), "on day {day}");
        told = authority.bundle();
        assert!(told.matches("BEGIN CERTIFICATE").count() <= 2, "what has ended is forgotten");
        if signers.last() != Some(&authority.current) {
            signers.push(authority.current.clone());
        }
    }
    assert!((7..10).contains(&signers.len()), "{} CAs in 2000 days", signers.len());
    assert!((30..45).contains(&servers), "{servers} certificates in 2000 days");
}

#[test]
fn a_server_that_is_not_renewed_at_once_is_trusted_until_it_ends() {
    let mut authority = first();
    let server = authority.server_due(None, &names(), at(200)).expect("makes").value;
    for day in 200..290 {
        authority = Authority::due(Some(&authority), at(day)).expect("looks").value;
        assert!(trusts(&authority.bundle(), &server, at(day)), "day {day}");
    }
    assert_eq!(authority.old.len(), 1, "another CA signs by now");
}

#[test]
fn keys_are_not_shown() {
    assert!(!format!("{:?}", first()).contains("PRIVATE"));
}
