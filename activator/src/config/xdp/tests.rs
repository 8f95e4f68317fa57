use clap::Parser as _;

use super::super::{Args, Config};
use super::*;

fn config(args: &[&str]) -> Result<Option<XdpConfig>, Faults> {
    let args = [&["podlight-activator", "--hostname", "host", "--plaintext"], args].concat();
    Config::try_from(Args::try_parse_from(args).expect("parses").run).map(|config| config.xdp)
}

fn faults(args: &[&str]) -> Vec<String> {
    config(args).expect_err("has faults").0
}

#[test]
fn there_is_no_readiness_map_without_a_port() {
    assert_eq!(config(&[]), Ok(None));
    assert_eq!(config(&["--xdp", "off"]), Ok(None));
    let given = config(&["--xdp-listen", "0.0.0.0:9403"]).expect("valid").expect("given");
    assert_eq!((given.mode, given.interfaces, given.probes), (Mode::Auto, Vec::new(), Vec::new()));
    assert_eq!((given.ttl, given.max_entries), (Duration::from_secs(2), 262_144));
}

#[test]
fn each_interface_has_the_mode_of_all_or_its_own() {
    let args = [
        "--xdp-listen",
        "[::]:9403",
        "--xdp",
        "generic",
        "--xdp-interface",
        "eth0,eth1=native",
        "--xdp-interface",
        "lo=off",
    ];
    let given = config(&args).expect("valid").expect("given");
    let wanted = [("eth0", Mode::Generic), ("eth1", Mode::Native), ("lo", Mode::Off)];
    assert_eq!(given.interfaces, wanted.map(|(name, mode)| (name.to_owned(), mode)));
}

#[test]
fn probes_name_a_service_a_port_and_a_path() {
    let args = ["--xdp-listen", "0.0.0.0:9403", "--xdp-interface", "eth0", "--xdp-probe", "shop/web:8080/healthz?full"];
    let given = config(&args).expect("valid").expect("given");
    let wanted = Probe { group: GroupKey::new("shop", "web"), port: 8080, path: "/healthz?full".into() };
    assert_eq!(given.probes, [wanted]);
}

#[test]
fn what_cannot_be_used_is_told() {
    let base = ["--xdp-listen", "0.0.0.0:9403", "--xdp-interface", "eth0"];
    let long = format!("shop/web:80/{}", "x".repeat(LONGEST_PATH));
    let wrong: [&[&str]; 16] = [
        &["--xdp", "fast"],
        &["--xdp-interface", "eth1=fast"],
        &["--xdp-interface", "=native"],
        &["--xdp-interface", "a-name-that-is-too-long"],
        &["--xdp-interface", "eth0"],
        &["--xdp-probe", "web:80/"],
        &["--xdp-probe", "shop/web:0/"],
        &["--xdp-probe", "shop/web:80"],
        &["--xdp-probe", "shop/web/x:80/"],
        &["--xdp-probe", "shop/web:80/a b"],
        &["--xdp-probe", "shop/web:9403/"],
        &["--xdp-probe", &long],
        &["--xdp-ttl", "999ms"],
        &["--xdp-ttl", "61s"],
        &["--xdp-max-entries", "0"],
        &["--xdp-max-entries", "16777217"],
    ];
    for args in wrong {
        let told = faults(&[&base[..], args].concat());
        assert_eq!(told.len(), 1, "{args:?}: {told:?}");
        assert!(told[0].starts_with(&format!("{}:", args[0])), "{args:?}: {told:?}");
    }
    let alone: [(&[&str], &str); 4] = [
        (&["--xdp-listen", "9403"], "--xdp-listen:"),
        (&["--xdp-interface", "eth0"], "--xdp-listen:"),
        (&["--xdp-listen", "0.0.0.0:9403", "--xdp", "native"], "--xdp-interface:"),
        (&["--xdp-listen", "0.0.0.0:9403", "--xdp-probe", "shop/web:80/"], "--xdp-interface:"),
    ];
    for (args, beginning) in alone {
        let told = faults(args);
        assert!(told.len() == 1 && told[0].starts_with(beginning), "{args:?}: {told:?}");
    }
}
