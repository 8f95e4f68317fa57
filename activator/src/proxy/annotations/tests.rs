use super::*;
use crate::proxy::fixtures::*;
use crate::proxy::target::AppProtocol;
use crate::table::entry::Protocol;
use crate::table::group::ServiceKind;

fn read(annotations: &[(&str, &str)]) -> (TargetSpec, Vec<TargetFault>) {
    parse(&annotated(service("web"), annotations), None)
}

fn why(service: &Service) -> String {
    settle(service, &parse(service, None).0, &DEFAULTS).expect_err("unusable").to_string()
}

#[test]
fn all_that_can_be_asked_for_is_understood() {
    let (spec, faults) = read(&[
        ("route", "cold-start-only"),
        ("hosts", "Web.Example.com, *.web.example.com ,"),
        ("port", "http"),
        ("concurrency", "10"),
        ("scale-target", "Deployment/web"),
        ("hold-timeout", "90s"),
        ("upstream-tls", "true"),
        ("upstream-ca-secret", "web-ca"),
        ("upstream-server-name", "web.internal"),
    ]);
    assert_eq!(faults, []);
    assert_eq!(spec.route, Some(RouteChoice::Mode(Mode::ColdStartOnly)));
    assert_eq!(
        spec.hosts,
        Some(vec![HostPattern::Exact("web.example.com".into()), HostPattern::Below("web.example.com".into())])
    );
    assert_eq!(spec.scale_target.as_ref().map(ToString::to_string).as_deref(), Some("Deployment/web"));
    let settings = settle(&service("web"), &spec, &DEFAULTS).expect("usable");
    assert_eq!((settings.mode, settings.protocol), (Mode::ColdStartOnly, AppProtocol::Https));
    assert_eq!((settings.hold_timeout.as_secs(), settings.concurrency.map(NonZeroU32::get)), (90, Some(10)));
    let tls = settings.tls.expect("asked for");
    assert_eq!((&*tls.server_name, tls.ca_secret.as_deref()), ("web.internal", Some("web-ca")));
    assert_eq!(&*settings.server_name, "web.default.svc");
}

#[test]
fn what_cannot_be_parsed_is_told_with_what_is_expected_and_the_last_good_value_kept() {
    let good = [
        ("route", "always"),
        ("hosts", "web.example.com"),
        ("port", "80"),
        ("concurrency", "3"),
        ("scale-target", "Deployment/web"),
        ("hold-timeout", "5s"),
        ("upstream-tls", "true"),
        ("upstream-ca-secret", "ca"),
        ("upstream-server-name", "web.internal"),
    ];
    let bad = [
        ("route", "sometimes"),
        ("hosts", "web.example.com,bad host"),
        ("port", "https"),
        ("concurrency", "0"),
        ("scale-target", "Deployment"),
        ("hold-timeout", "5"),
        ("upstream-tls", "yes"),
        ("upstream-ca-secret", "CA"),
        ("upstream-server-name", "*.internal"),
    ];
    let (held, _) = read(&good);
    let (spec, faults) = parse(&annotated(service("web"), &bad), Some(&held));
    assert_eq!(spec, held);
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), bad.len(), "{told:?}");
    for (fault, (name, value)) in told.iter().zip(bad) {
        assert!(fault.starts_with(&format!("podlight.dev/{name}: {value:?} must be ")), "{fault}");
    }
    assert!(told[2].contains("80 (http)"), "{}", told[2]);
}

#[test]
fn an_annotation_that_is_taken_back_says_nothing_any_longer() {
    let (held, _) = read(&[("concurrency", "3")]);
    let (spec, faults) = parse(&service("web"), Some(&held));
    assert_eq!((spec.concurrency, faults), (None, Vec::new()));
}

#[test]
fn a_service_whose_first_word_makes_no_sense_is_not_routed_and_says_so() {
    let web = annotated(service("web"), &[("route", "sometimes")]);
    assert!(opts_in(&web));
    assert!(why(&web).contains("always, cold-start-only, disabled or default"));
}

#[test]
fn case_1_the_only_port_needs_no_name() {
    let web = Service { ports: vec![service_port("", 80, Protocol::Tcp)], ..service("web") };
    let settings = settings(&web);
    assert_eq!((&*settings.port_name, settings.service_port), ("", 80));
}

#[test]
fn case_2_a_number_is_the_services_and_leads_to_the_ports_name() {
    let ports = vec![service_port("admin", 8080, Protocol::Tcp), service_port("web", 80, Protocol::Tcp)];
    let web = annotated(Service { ports, ..service("web") }, &[("port", "80")]);
    assert_eq!(&*settings(&web).port_name, "web");
    // 8081 may be open on the pods, but it is no port of the Service.
    let (_, faults) = parse(&annotated(web, &[("port", "8081")]), None);
    assert!(faults[0].to_string().contains("8080 (admin), 80 (web)"), "{}", faults[0]);
}

#[test]
fn case_3_a_name_is_the_service_ports() {
    let ports = vec![service_port("admin", 9000, Protocol::Tcp), service_port("web", 80, Protocol::Tcp)];
    let web = annotated(Service { ports, ..service("web") }, &[("port", "admin")]);
    assert_eq!(settings(&web).service_port, 9000);
}

#[test]
fn case_7_a_udp_port_of_the_same_number_is_not_it() {
    let ports = vec![service_port("dns", 53, Protocol::Udp), service_port("dns-tcp", 53, Protocol::Tcp)];
    let dns = annotated(Service { ports, ..service("dns") }, &[("port", "53")]);
    assert_eq!(&*settings(&dns).port_name, "dns-tcp");
    let udp = Service { ports: vec![service_port("dns", 53, Protocol::Udp)], ..service("dns") };
    assert!(why(&udp).contains("no TCP port"));
}

#[test]
fn of_several_ports_http_is_the_one_and_else_they_are_listed() {
    let ports = vec![service_port("metrics", 9090, Protocol::Tcp), service_port("http", 80, Protocol::Tcp)];
    assert_eq!(settings(&Service { ports, ..service("web") }).service_port, 80);
    let ports = vec![service_port("metrics", 9090, Protocol::Tcp), service_port("web", 80, Protocol::Tcp)];
    let why = why(&Service { ports, ..service("web") });
    assert!(why.contains("podlight.dev/port") && why.contains("9090 (metrics), 80 (web)"), "{why}");
}

#[test]
fn case_10_a_port_that_goes_is_told_with_those_there_are() {
    let web = annotated(service("web"), &[("port", "http")]);
    let (held, _) = parse(&web, None);
    let renamed = Service { ports: vec![service_port("web", 80, Protocol::Tcp)], ..web };
    let (spec, faults) = parse(&renamed, Some(&held));
    assert_eq!(faults.len(), 1);
    let why = settle(&renamed, &spec, &DEFAULTS).expect_err("nothing is left");
    assert!(why.contains("\"http\"") && why.contains("80 (web)"), "{why}");
    for wrong in ["65536", "0", ""] {
        assert_eq!(read(&[("port", wrong)]).1.len(), 1, "{wrong}");
    }
}

#[test]
fn case_11_app_protocol_says_what_the_pods_speak_and_an_annotation_has_the_last_word() {
    let speaking = |app_protocol: Option<&str>, annotations: &[(&str, &str)]| {
        let mut web = annotated(service("web"), annotations);
        web.ports[0].app_protocol = app_protocol.map(Into::into);
        let settings = settings(&web);
        assert_eq!(settings.tls.is_some(), settings.protocol == AppProtocol::Https);
        settings.protocol
    };
    assert_eq!(speaking(None, &[]), AppProtocol::Http1);
    assert_eq!(speaking(Some("kubernetes.io/h2c"), &[]), AppProtocol::H2c);
    assert_eq!(speaking(Some("grpc"), &[]), AppProtocol::H2c);
    assert_eq!(speaking(Some("https"), &[]), AppProtocol::Https);
    assert_eq!(speaking(Some("example.com/own"), &[]), AppProtocol::Http1);
    assert_eq!(speaking(None, &[("upstream-tls", "true")]), AppProtocol::Https);
    assert_eq!(speaking(Some("https"), &[("upstream-tls", "false")]), AppProtocol::Http1);
    assert_eq!(speaking(Some("kubernetes.io/h2c"), &[("upstream-tls", "false")]), AppProtocol::H2c);
}

#[test]
fn case_25_an_external_name_is_refused_with_the_reason() {
    let alias = Service { kind: ServiceKind::ExternalName, ports: Vec::new(), ..service("alias") };
    assert!(why(&alias).contains("ExternalName"));
}

#[test]
fn a_headless_service_without_ports_needs_a_number() {
    let web = Service { ports: Vec::new(), ..headless("web") };
    assert!(why(&web).contains("no TCP port"));
    let web = annotated(web, &[("port", "9000")]);
    assert_eq!(settings(&web).pod_port, Some(9000));
    assert_eq!(parse(&annotated(web, &[("port", "web")]), None).1.len(), 1);
}

#[test]
fn spans_and_scale_targets_have_bounds() {
    for span in ["0s", "2h", "-1s", "1.5s", "99999999999999999999s", "s", ""] {
        assert_eq!(read(&[("hold-timeout", span)]).1.len(), 1, "{span}");
    }
    for wanted in ["/web", "Deployment/", "Deployment/Web", "1/web", "a/b/c", "De ployment/web"] {
        assert_eq!(read(&[("scale-target", wanted)]).1.len(), 1, "{wanted}");
    }
    let many = (0..=MOST_HOSTS).map(|n| format!("h{n}.example.com")).collect::<Vec<_>>().join(",");
    assert!(read(&[("hosts", &many)]).1[0].to_string().contains("at most 100 hosts"));
}
