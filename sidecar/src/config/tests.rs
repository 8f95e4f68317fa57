use super::*;

const IDENTITY: [&str; 6] = ["--namespace", "default", "--pod", "web-0", "--uid", "6f9d1b3e"];
const PROBE: [&str; 2] = ["--probe", "http://:8080/healthz"];

fn read(flags: &[&str]) -> Result<Config, Faults> {
    let args = Args::try_parse_from(["podlight-sidecar"].iter().chain(flags)).expect("known flags");
    Config::try_from(args.run)
}

fn complete(more: &[&str]) -> Config {
    read(&[&IDENTITY[..], &PROBE, more].concat()).expect("a configuration")
}

fn push(more: &[&str]) -> Push {
    complete(more).push.expect("push is on")
}

#[test]
fn the_downward_api_and_a_probe_are_enough() {
    let push = push(&[]);
    let service = Url::parse("https://podlight-activator-events.podlight-system.svc:8443").expect("a URL");
    assert_eq!(push.activator, Activator::Service(service));
    assert_eq!(push.identity.pod.issuer(), "/namespaces/default/pods/web-0/6f9d1b3e");
    assert_eq!(push.probed_address(), IpAddr::from(Ipv4Addr::LOCALHOST));
    assert!(push.activator.tls());
}

#[test]
fn flags_say_otherwise() {
    let push = push(&[
        "--activator=http://127.0.0.1:1,http://localhost:2",
        "--activator=http://[::1]:3",
        "--address=10.0.0.7,fd00::7",
        "--port=web=8080,9090",
        "--probe=tcp://:5432",
        "--timeout=500ms",
    ]);
    let Activator::Fixed(urls) = &push.activator else { panic!("fixed replicas") };
    assert_eq!(urls.len(), 3);
    assert_eq!(push.probed_address(), IpAddr::from([10, 0, 0, 7]));
    let ports = [("web", 8080), ("", 9090)].map(|(name, port)| Port { name: name.into(), port });
    assert_eq!(push.identity.ports, ports);
    assert_eq!((push.probes.len(), push.timeout), (2, Duration::from_millis(500)));
    let elsewhere = self::push(&["--activator-namespace=mesh"]).activator;
    let Activator::Service(url) = elsewhere else { panic!("a Service") };
    assert_eq!(url.host_str(), Some("podlight-activator-events.mesh.svc"));
}

#[test]
fn every_fault_is_told_at_once() {
    let flags = [
        "--probe=ftp://:1",
        "--probe=http://:1?period=0s",
        "--activator=http://10.0.0.1:80",
        "--activator=https://a/path",
        "--activator-service=https://x.y.svc",
        "--timeout=0s",
        "--push=maybe",
        "--namespace=Default",
        "--address=nonsense",
        "--revision=-",
        "--port=web=0",
        "--admin-listen=9402",
        "--drain-deadline=soon",
        "--log=a=b=c",
        "--log-format=xml",
    ];
    let Faults(faults) = read(&flags).expect_err("faults");
    let told = |flag: &str| faults.iter().filter(|fault| fault.starts_with(flag)).count();
    for (flag, times) in [
        ("--probe:", 2),
        ("--activator:", 2),
        ("--activator-service:", 1),
        ("--timeout:", 1),
        ("--push:", 1),
        ("--pod:", 1),
        ("--uid:", 1),
        ("--namespace, --pod or --uid:", 1),
        ("--address:", 1),
        ("--revision:", 1),
        ("--port:", 1),
        ("--admin-listen:", 1),
        ("--drain-deadline:", 1),
        ("--log:", 1),
        ("--log-format:", 1),
    ] {
        assert_eq!(told(flag), times, "{flag} in {faults:#?}");
    }
    assert_eq!(faults.len(), 17, "{faults:#?}");
}

#[test]
fn no_probe_is_a_fault() {
    let Faults(faults) = read(&IDENTITY).expect_err("a fault");
    assert_eq!(faults.len(), 1);
    assert!(faults[0].starts_with("--probe: at least one is needed"), "{faults:?}");
}

#[test]
fn an_inert_sidecar_needs_nothing() {
    assert!(read(&["--push=off"]).expect("a configuration").push.is_none());
}

#[test]
fn schemes_are_not_mixed() {
    let flags = [&IDENTITY[..], &PROBE, &["--activator=http://127.0.0.1:1,https://a.svc"]].concat();
    let Faults(faults) = read(&flags).expect_err("a fault");
    assert_eq!(faults, ["--activator: must all have the same scheme"]);
}

#[test]
fn drain_has_its_own_flags() {
    let flags = ["podlight-sidecar", "drain", "--hold=1s", "--deadline=250ms", "--admin-listen=127.0.0.1:1"];
    let Some(Command::Drain(args)) = Args::try_parse_from(flags).expect("flags").command else { panic!("drain") };
    let config = DrainConfig::try_from(args).expect("a configuration");
    assert_eq!((config.hold, config.deadline), (Duration::from_secs(1), Duration::from_millis(250)));
    let flags = ["podlight-sidecar", "drain", "--hold=x", "--deadline=y"];
    let Some(Command::Drain(args)) = Args::try_parse_from(flags).expect("flags").command else { panic!("drain") };
    let Faults(faults) = DrainConfig::try_from(args).expect_err("faults");
    assert_eq!(faults.len(), 2);
}
