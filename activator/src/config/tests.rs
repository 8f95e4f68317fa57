use super::*;

/// The configuration of a command line, on a host called `host`.
fn config(args: &[&str]) -> Result<Config, Faults> {
    let args = [&["podlight-activator", "--hostname", "host"], args].concat();
    Config::try_from(Args::try_parse_from(args).expect("parses").run)
}

fn faults(args: &[&str]) -> Vec<String> {
    config(args).expect_err("has faults").0
}

#[test]
fn defaults_are_valid_by_their_own_rules() {
    let config = config(&["--plaintext"]).expect("valid");
    assert_eq!(config.listen.port(), 8443);
    assert!(config.status_page);
    assert_eq!(config.ingest.auth, AuthMode::Hybrid);
    assert_eq!(config.ingest.replica, "host");
    assert_eq!((config.ingest.rate, config.ingest.source_rate), (IngestConfig::RATE, IngestConfig::SOURCE_RATE));
    assert_eq!(config.ingest.pacing, Pacing::default());
    assert_eq!(config.limits.grace, Duration::from_secs(25));
    assert_eq!(config.limits.timeouts, Timeouts::default());
    let ingest = IngestConfig::new(AuthMode::Hybrid, "host");
    let bounds = |c: &IngestConfig| {
        (c.max_sessions, c.max_sources, c.max_in_flight, c.max_waiting, c.reviews_in_flight, c.reviews_waiting)
    };
    assert_eq!((bounds(&config.ingest), config.ingest.body_timeout), (bounds(&ingest), ingest.body_timeout));
}

#[test]
fn bounds_and_deadlines_are_settings() {
    let given = ["--max-sources", "1", "--max-in-flight", "3", "--max-waiting", "2", "--max-reviews-waiting", "4"];
    let timeouts = ["--head-timeout", "1s", "--body-timeout", "500ms"];
    let config = config(&[&["--plaintext"], &given[..], &timeouts].concat()).expect("valid");
    let IngestConfig { max_sources, max_in_flight, max_waiting, reviews_waiting, body_timeout, .. } = config.ingest;
    assert_eq!((max_sources, max_in_flight, max_waiting, reviews_waiting), (1, 3, 2, 4));
    assert_eq!((config.limits.timeouts.head, body_timeout), (Duration::from_secs(1), Duration::from_millis(500)));
    let told =
        faults(&["--plaintext", "--max-waiting", "0", "--max-reviews", "99999999999999", "--head-timeout", "0s"]);
    assert_eq!(told.len(), 3, "{told:?}");
}

#[test]
fn every_fault_is_told_at_once() {
    let told = faults(&[
        "--listen",
        "nowhere",
        "--admin-listen",
        "1",
        "--tls-cert",
        "a",
        "--tls-name",
        "x",
        "--auth",
        "none",
        "--issuer-key",
        "k",
        "--revision-label",
        "a b",
        "--peer",
        "ftp://x",
        "--max-sessions",
        "0",
        "--rate",
        "5",
        "--source-rate",
        "0:1",
        "--max-connections",
        "none",
        "--shutdown-grace",
        "5",
        "--heartbeat-confirmed",
        "1500ms",
        "--log",
        "x=y=z",
        "--log-format",
        "xml",
        "--max-reviews",
        "many",
        "--shutdown-delay",
        "25h",
        "--max-sources",
        "0.5",
        "--max-in-flight",
        "0",
        "--max-waiting",
        "x",
        "--max-reviews-waiting",
        "",
        "--head-timeout",
        "0s",
        "--body-timeout",
        "1",
        "--status-page",
        "yes",
    ]);
    let flags: Vec<&str> = told.iter().filter_map(|fault| fault.split_once(':')).map(|(flag, _)| flag).collect();
    assert_eq!(
        flags,
        [
            "--listen",
            "--admin-listen",
            "--status-page",
            "--tls-name",
            "--tls-key",
            "--issuer-key",
            "--revision-label",
            "--auth",
            "--peer",
            "--heartbeat-confirmed",
            "--max-sessions",
            "--rate",
            "--source-rate",
            "--max-sources",
            "--max-in-flight",
            "--max-waiting",
            "--max-reviews",
            "--max-reviews-waiting",
            "--body-timeout",
            "--max-connections",
            "--shutdown-grace",
            "--head-timeout",
            "--shutdown-delay",
            "--log",
            "--log-format",
        ],
        "{told:#?}"
    );
}

#[test]
fn how_to_secure_the_listener_is_said_once() {
    assert!(faults(&[])[0].contains("is needed"));
    assert!(faults(&["--plaintext", "--tls-self-signed"])[0].contains("only one"));
    assert!(faults(&["--plaintext", "--tls-cert", "c", "--tls-key", "k"])[0].contains("only one"));
    assert!(faults(&["--tls-key", "k"])[0].starts_with("--tls-cert"));
    let files = config(&["--tls-cert", "c", "--tls-key", "k"]).expect("valid").tls;
    assert_eq!(files, TlsConfig::Files(Files { certificate: "c".into(), key: "k".into() }));
}

#[test]
fn a_certificate_made_at_start_names_the_local_host_too() {
    let tls = config(&["--tls-self-signed", "--tls-name", "a.test,10.0.0.1"]).expect("valid").tls;
    let TlsConfig::SelfSigned { names, ca_out: None } = tls else { panic!("{tls:?}") };
    assert_eq!(names, ["localhost", "127.0.0.1", "::1", "a.test", "10.0.0.1"]);
    assert!(faults(&["--tls-self-signed", "--tls-name", "not a name"])[0].contains("DNS name"));
}

#[test]
fn standalone_mode_has_a_key_and_judges_tokens_by_it() {
    let args = ["--plaintext", "--cluster-from", "m", "--issuer-key", "k"];
    let standalone = config(&args).expect("valid");
    assert_eq!(standalone.ingest.auth, AuthMode::Jwks);
    let cluster =
        ClusterConfig::Standalone { manifests: "m".into(), issuer_key: "k".into(), issuer: DEFAULT_ISSUER.into() };
    assert_eq!(standalone.cluster, cluster);
    assert_eq!(config(&[&args[..], &["--auth", "hybrid"]].concat()).expect("valid").ingest.auth, AuthMode::Hybrid);
    assert_eq!(faults(&["--plaintext", "--cluster-from", "m"]), ["--issuer-key: is needed with --cluster-from"]);
}

#[test]
fn spans_rates_and_urls_are_read_strictly() {
    assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
    assert_eq!(span("24h"), Ok(Duration::from_secs(86_400)));
    for bad in ["", "5", "s", "-1s", "1.5s", "5 s", "25h", "18446744073709551615h"] {
        span(bad).expect_err(bad);
    }
    assert_eq!(rate("10:20"), Ok(Rate { per_second: 10, burst: 20 }));
    for bad in ["", "10", "10:", ":1", "0:1", "1:0", "1:2:3"] {
        rate(bad).expect_err(bad);
    }
    for good in ["https://a:8443", "http://10.0.0.1", "https://[::1]:1/"] {
        assert_eq!(base_url(good), Ok(()), "{good}");
    }
    for bad in ["a:8443", "https://", "https://a/x", "https://a?b", "ftp://a"] {
        base_url(bad).expect_err(bad);
    }
}

#[test]
fn heartbeats_do_not_slow_down_before_they_are_confirmed() {
    let told = faults(&["--plaintext", "--heartbeat-unconfirmed", "60s", "--heartbeat-confirmed", "30s"]);
    assert!(told[0].starts_with("--heartbeat-unconfirmed: must not be longer"), "{told:?}");
}

#[test]
fn a_token_is_for_a_pod_that_can_be() {
    let token = |args: &[&str]| {
        let args = [&["podlight-activator", "token", "--issuer-key", "k"], args].concat();
        match Args::try_parse_from(args).expect("parses").command {
            Some(Command::Token(args)) => TokenConfig::try_from(args),
            other => panic!("{other:?}"),
        }
    };
    let minted = token(&["--pod", "web-0", "-n", "shop"]).expect("valid").request;
    assert_eq!((minted.pod_uid, minted.seconds), (pod_uid("shop", "web-0"), 3600));
    assert_eq!(token(&["--pod", "Web", "--lifetime", "0s"]).expect_err("two faults").0.len(), 2);
}
