use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use podlight_sidecar::config::{
    Args as SidecarArgs, Command as SidecarCommand, Config as SidecarConfig, DrainConfig, Running,
};
use proptest::prelude::*;
use serde_json::Map;

use super::settings::of_flags as settings;
use super::*;
use crate::config::Faults;

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    injection: InjectionArgs,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/inject")
}

fn read(file: &str) -> Value {
    let text = std::fs::read_to_string(folder().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn pod(name: &str) -> Value {
    read(&format!("{name}.yaml"))
}

fn patched(pod: &Value, patch: &Patch) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, patch).expect("the patch fits");
    pod
}

fn injected_with(name: &str, settings: &Settings) -> Result<Value, Reason> {
    let pod = pod(name);
    decide(Subject::pod(&pod, Some("shop")), settings).map(|patch| patched(&pod, &patch))
}

fn injected(name: &str) -> Value {
    injected_with(name, &settings(&[])).unwrap_or_else(|reason| panic!("{name}: {reason}"))
}

fn left(name: &str) -> Reason {
    injected_with(name, &settings(&[])).expect_err(name)
}

fn sidecar_of(pod: &Value) -> &Value {
    let init = pod["spec"]["initContainers"].as_array().expect("init containers");
    init.iter().find(|container| container["name"] == CONTAINER).expect("a sidecar")
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text")).collect()
}

fn probes(pod: &Value) -> Vec<&str> {
    let args = texts(&sidecar_of(pod)["args"]);
    args.into_iter().filter_map(|arg| arg.strip_prefix("--probe=")).collect()
}

/// A pod whose only container has this.
fn with(container: Value) -> Value {
    let mut fields = Map::from_iter([("name".to_owned(), json!("app")), ("image".to_owned(), json!("app"))]);
    fields.extend(container.as_object().expect("fields").clone());
    json!({ "metadata": { "name": "x" }, "spec": { "containers": [fields] } })
}

fn probes_of(container: Value) -> Result<Vec<String>, Reason> {
    let pod = with(container);
    let patch = decide(Subject::pod(&pod, None), &settings(&[]))?;
    Ok(probes(&patched(&pod, &patch)).into_iter().map(str::to_owned).collect())
}

/// The golden pods: what is to become of each is in the file beside it.
fn golden() -> BTreeMap<String, Result<Value, String>> {
    let files = std::fs::read_dir(folder()).expect("the folder");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("a name"));
    let cases =
        names.filter_map(|name| name.strip_suffix(".yaml").filter(|n| !n.ends_with(".injected")).map(str::to_owned));
    let expected = cases.map(|case| {
        let left = std::fs::read_to_string(folder().join(format!("{case}.left")));
        let outcome = left.map_or_else(|_| Ok(read(&format!("{case}.injected.yaml"))), Err);
        (case, outcome)
    });
    expected.collect()
}

#[test]
fn the_golden_pods_become_what_is_written_beside_them() {
    let golden = golden();
    assert!(golden.len() > 20, "they are missing");
    for (case, expected) in golden {
        let outcome = injected_with(&case, &settings(&[]));
        let outcome = outcome.map_err(|reason| format!("{}: {reason}\n", reason.label()));
        assert_eq!(outcome, expected, "{case}");
    }
}

#[test]
fn what_was_injected_is_not_injected_again() {
    for (case, expected) in golden() {
        let Ok(pod) = expected else { continue };
        let again = decide(Subject::pod(&pod, Some("shop")), &settings(&[]));
        assert_eq!(again, Err(Reason::AlreadyInjected), "{case}");
    }
}

#[test]
fn every_generated_flag_is_one_that_the_sidecar_takes() {
    for (case, expected) in golden() {
        let Ok(pod) = expected else { continue };
        let sidecar = sidecar_of(&pod);
        let identity = ["--namespace=shop", "--pod=web-1", "--uid=u-1", "--address=10.0.0.7"];
        let admin = sidecar["env"].as_array().expect("env").iter().filter_map(|variable| {
            let flag = match variable["name"].as_str()? {
                "PODLIGHT_ADMIN_LISTEN" => "admin-listen",
                "PODLIGHT_ADMIN_SOCKET" => "admin-socket",
                _ => return None,
            };
            Some(format!("--{flag}={}", variable["value"].as_str()?))
        });
        let admin: Vec<String> = admin.collect();
        let all = ["podlight-sidecar"].into_iter().chain(texts(&sidecar["args"])).chain(identity);
        let args = SidecarArgs::try_parse_from(all.chain(admin.iter().map(String::as_str))).expect(&case);
        let config = SidecarConfig::try_from(args.run).unwrap_or_else(|faults| panic!("{case}: {faults}"));
        let push = config.push.expect("it pushes");
        assert_eq!(push.probes.len(), probes(&pod).len(), "{case}: none is split or lost");
        assert_eq!(push.ca.parent(), Some(Path::new("/var/run/secrets/podlight")));
        assert_eq!(push.token.parent(), push.ca.parent());

        let command = |of: &Value| texts(&of["exec"]["command"]).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let drain = SidecarArgs::try_parse_from(command(&sidecar["lifecycle"]["preStop"])).expect(&case);
        let Some(SidecarCommand::Drain(drain)) = drain.command else { panic!("{case}: preStop is no drain") };
        assert!(DrainConfig::try_from(drain).is_ok(), "{case}");
        let check = SidecarArgs::try_parse_from(command(&sidecar["startupProbe"])).expect(&case);
        let Some(SidecarCommand::Check(check)) = check.command else { panic!("{case}: startupProbe is no check") };
        assert!(Running::try_from(check).is_ok(), "{case}");
    }
}

#[test]
fn the_sidecar_reads_of_a_probe_what_the_pod_says() {
    let pod = injected("http");
    let [startup, readiness] = &probes(&pod)[..] else { panic!("two probes") };
    let parse = |text: &str| text.parse::<podlight_sidecar::probe::Probe>().expect("a probe");
    let (startup, readiness) = (parse(startup), parse(readiness));
    assert_eq!((startup.once, startup.port, startup.timeout.as_secs()), (true, 8080, 5));
    assert_eq!((readiness.once, readiness.port, readiness.host), (false, 8443, None));
    assert_eq!((readiness.period.as_secs(), readiness.timeout.as_secs()), (2, 3));
    assert_eq!((readiness.thresholds.failure.get(), readiness.thresholds.success.get()), (1, 2));
    let podlight_sidecar::probe::Target::Http { tls: true, path, headers } = &readiness.target else { panic!("https") };
    assert_eq!(path, "/ready?deep=1");
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
    assert_eq!(headers, [("authorization", "Basic YTpi%&"), ("host", "web.example")]);
}

#[test]
fn a_parameter_of_the_apps_is_no_option_of_the_sidecars_and_a_fragment_is_not_sent() {
    let pod = injected("path-with-a-word-of-the-sidecars");
    assert_eq!(probes(&pod), ["http://:8080/ready?deep=1&%74imeout=3&period=10s"]);
}

#[test]
fn kubernetes_puts_no_variables_into_probes() {
    let probe = json!({ "httpGet": { "port": 80, "path": "/$(POD_UID)" } });
    assert_eq!(probes_of(json!({ "readinessProbe": probe })), Ok(vec!["http://:80/$$(POD_UID)?period=10s".to_owned()]));
}

#[test]
fn a_probe_without_numbers_has_the_kubelets_defaults() {
    let probe = json!({ "httpGet": { "port": 80 } });
    assert_eq!(probes_of(json!({ "readinessProbe": probe })), Ok(vec!["http://:80/?period=10s".to_owned()]));
    let zero = json!({ "tcpSocket": { "port": "80" }, "periodSeconds": 0, "timeoutSeconds": 0, "failureThreshold": 0 });
    assert_eq!(probes_of(json!({ "readinessProbe": zero })), Ok(vec!["tcp://:80?period=10s".to_owned()]));
    let slow = json!({ "grpc": { "port": 80 }, "periodSeconds": 999_999, "timeoutSeconds": 999_999 });
    let capped = "grpc://:80?period=86400s&timeout=86400s".to_owned();
    assert_eq!(
        probes_of(json!({ "readinessProbe": slow })),
        Ok(vec![capped]),
        "a day is the most that a sidecar takes"
    );
}

#[test]
fn a_startup_probe_alone_is_what_is_asked() {
    let container = json!({ "startupProbe": { "tcpSocket": { "port": 80 } }, "ports": [{ "containerPort": 81 }] });
    assert_eq!(probes_of(container), Ok(vec!["tcp://:80?once".to_owned()]));
}

#[test]
fn what_a_sidecar_cannot_ask_leaves_the_pod_to_the_api_servers_word() {
    for (action, fault) in [
        (json!({ "exec": { "command": ["x"] } }), "is a command"),
        (json!({ "tcpSocket": { "port": 0 } }), "its port is 0"),
        (json!({ "tcpSocket": { "port": 70000 } }), "its port is 70000"),
        (json!({ "tcpSocket": { "port": "web" } }), "has no port \"web\""),
        (json!({ "tcpSocket": { "port": 80, "host": "a.example" } }), "is no address"),
        (json!({ "httpGet": { "port": 80, "scheme": "FTP" } }), "its scheme is"),
        (json!({ "httpGet": { "port": 80, "httpHeaders": [{ "name": "a b", "value": "" }] } }), "its header"),
        (json!({ "httpGet": { "port": 80, "httpHeaders": [{ "name": "a", "value": "\n" }] } }), "its header"),
        (json!({ "grpc": { "port": 80, "service": "a b" } }), "its service is"),
        (json!({}), "asks nothing"),
    ] {
        for kind in ["readinessProbe", "startupProbe"] {
            let reason = probes_of(json!({ kind: action, "ports": [{ "containerPort": 80 }] })).expect_err(fault);
            assert_eq!(reason.notice(), Notice::Everyone, "{reason}");
            let text = reason.to_string();
            assert!(text.contains(fault) && text.contains(kind) && text.contains("podlight.dev/probe-app"), "{text}");
        }
    }
}

#[test]
fn more_probes_than_a_sidecar_runs_are_a_reason() {
    let ports = |n: u16| json!({ "ports": (1..=n).map(|port| json!({ "containerPort": port })).collect::<Vec<_>>() });
    assert_eq!(probes_of(ports(64)).expect("fits").len(), 64);
    assert_eq!(probes_of(ports(65)), Err(Reason::TooManyProbes(64)));
}

#[test]
fn the_sidecar_is_a_native_one_and_first_unless_told_otherwise() {
    let position = |pod: &Value| {
        let init = pod["spec"]["initContainers"].as_array().expect("init containers");
        (init.iter().position(|container| container["name"] == CONTAINER).expect("there"), init.len())
    };
    let pod = injected("native-sidecar");
    assert_eq!((position(&pod), &sidecar_of(&pod)["restartPolicy"]), ((0, 3), &json!("Always")));
    assert_eq!(position(&injected("last")), (1, 2));
    let last = settings(&["--sidecar-position=last"]);
    assert_eq!(position(&injected_with("native-sidecar", &last).expect("injected")), (2, 3));
    for mesh in ["istio", "linkerd"] {
        assert_eq!(
            position(&injected(mesh)),
            (0, 3),
            "before the mesh's proxy: it is there until after the proxy has gone"
        );
    }
}

#[test]
fn init_containers_of_its_own_stay_as_they_are_and_only_those_that_last_are_asked() {
    let pod = injected("native-sidecar");
    assert_eq!(probes(&pod), ["tcp://:6379?once", "http://:8080/?period=5s"]);
    let init = |pod: &Value| pod["spec"]["initContainers"].as_array().expect("init containers").clone();
    assert_eq!(init(&pod)[1..], init(&self::pod("native-sidecar"))[..]);
}

#[test]
fn the_kubelets_own_probes_and_everything_else_stay_as_they_are() {
    for (case, expected) in golden() {
        let Ok(mut pod) = expected else { continue };
        let spec = pod["spec"].as_object_mut().expect("a spec");
        for (list, names) in [("initContainers", [CONTAINER, ""]), ("volumes", [IDENTITY_VOLUME, RUN_VOLUME])] {
            let ours = |entry: &Value| names.iter().any(|name| entry["name"] == *name);
            let left = spec[list].as_array_mut().expect("a list");
            left.retain(|entry| !ours(entry));
            if left.is_empty() {
                spec.remove(list);
            }
        }
        assert_eq!(pod, self::pod(&case), "{case}");
    }
}

#[test]
fn token_and_ca_are_mounted_in_the_sidecar_alone() {
    for (case, expected) in golden() {
        let Ok(pod) = expected else { continue };
        let spec = &pod["spec"];
        let all = spec["initContainers"].as_array().into_iter().chain(spec["containers"].as_array()).flatten();
        let mounting =
            all.filter(|c| c["volumeMounts"].as_array().into_iter().flatten().any(|m| m["name"] == IDENTITY_VOLUME));
        let mounting: Vec<_> = mounting.map(|container| &container["name"]).collect();
        assert_eq!(mounting, [CONTAINER], "{case}");
        let volume = spec["volumes"].as_array().expect("volumes").iter().find(|v| v["name"] == IDENTITY_VOLUME);
        let sources = &volume.expect("the volume")["projected"]["sources"];
        let token = json!({ "audience": "podlight", "expirationSeconds": 3600, "path": "token" });
        assert_eq!(sources[0]["serviceAccountToken"], token, "{case}");
        assert_eq!(sources[1]["configMap"]["optional"], true, "{case}: a pod does not wait for the CA");
    }
}

#[test]
fn the_downward_api_tells_name_namespace_uid_node_and_service_account() {
    let pod = injected("without-probe");
    let env = sidecar_of(&pod)["env"].as_array().expect("env").iter();
    let env: BTreeMap<_, _> = env
        .map(|v| {
            (v["name"].as_str().expect("a name"), v["valueFrom"]["fieldRef"]["fieldPath"].as_str().expect("a path"))
        })
        .collect();
    let expected = [
        ("NODE_NAME", "spec.nodeName"),
        ("POD_IPS", "status.podIPs"),
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ("POD_UID", "metadata.uid"),
    ];
    assert_eq!(env, BTreeMap::from(expected));
}

#[test]
fn the_revision_is_the_label_that_the_activator_would_look_at() {
    let revision = |pod: &Value| {
        let env = sidecar_of(pod)["env"].as_array().expect("env");
        let variable = env.iter().find(|variable| variable["name"] == "PODLIGHT_REVISION")?;
        variable["valueFrom"]["fieldRef"]["fieldPath"].as_str().map(str::to_owned)
    };
    assert_eq!(revision(&injected("http")).as_deref(), Some("metadata.labels['pod-template-hash']"));
    assert_eq!(revision(&injected("tcp-and-grpc")).as_deref(), Some("metadata.labels['controller-revision-hash']"));
    assert_eq!(revision(&injected("istio")).as_deref(), Some("metadata.labels['podlight.dev/revision']"));
    assert_eq!(revision(&injected("without-probe")), None);
    let other = injected_with("http", &settings(&["--revision-label=app"])).expect("injected");
    assert_eq!(revision(&other).as_deref(), Some("metadata.labels['app']"));
}

#[test]
fn the_sidecar_keeps_to_the_restricted_level_of_pod_security() {
    let security = sidecar_of(&injected("restricted"))["securityContext"].clone();
    assert_eq!((&security["runAsNonRoot"], &security["allowPrivilegeEscalation"]), (&json!(true), &json!(false)));
    assert_eq!(
        (&security["capabilities"], &security["seccompProfile"]["type"]),
        (&json!({ "drop": ["ALL"] }), &json!("RuntimeDefault"))
    );
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert!(security["runAsUser"].as_u64().is_some_and(|uid| uid > 0));
}

#[test]
fn requests_and_limits_are_settings_and_may_be_none() {
    let settings = settings(&[
        "--sidecar-requests=cpu=5m",
        "--sidecar-limits=",
        "--sidecar-pull-policy=Never",
        "--sidecar-image=a/b@sha256:c",
    ]);
    let pod = injected_with("http", &settings).expect("injected");
    let sidecar = sidecar_of(&pod);
    assert_eq!(sidecar["resources"], json!({ "requests": { "cpu": "5m" } }));
    assert_eq!((&sidecar["image"], &sidecar["imagePullPolicy"]), (&json!("a/b@sha256:c"), &json!("Never")));
}

#[test]
fn the_startup_probe_can_be_left_out() {
    let pod = injected_with("http", &settings(&["--sidecar-startup-probe=off"])).expect("injected");
    assert!(sidecar_of(&pod).get("startupProbe").is_none());
}

#[test]
fn on_the_nodes_network_nothing_is_bound_that_a_second_pod_would_bind() {
    let pod = injected("host-network");
    let sidecar = sidecar_of(&pod);
    assert!(sidecar.get("ports").is_none(), "a declared port is a host port there");
    let env = sidecar["env"].as_array().expect("env");
    let value = |name: &str| env.iter().find(|variable| variable["name"] == name).map(|variable| &variable["value"]);
    assert_eq!(value("PODLIGHT_ADMIN_LISTEN"), Some(&json!("127.0.0.1:0")));
    assert_eq!(value("PODLIGHT_ADMIN_SOCKET"), Some(&json!("/run/podlight/admin.sock")));
}

#[test]
fn the_admin_port_gives_way_to_a_port_of_the_app() {
    let pod = injected("admin-port-taken");
    assert_eq!(sidecar_of(&pod)["ports"][0]["containerPort"], 9404);
    assert_eq!(sidecar_of(&injected("http"))["ports"][0]["containerPort"], 9402);
}

#[test]
fn annotations_name_other_probes_by_port_number_or_name_several_or_none() {
    assert_eq!(probes(&injected("annotations")), ["http://:8080/ready?period=1s", "tcp://:9000"]);
}

#[test]
fn an_annotation_that_cannot_be_parsed_leaves_the_pod_alone_and_is_told() {
    for value in [
        "",
        "8080",
        "http://:8080 nonsense",
        "ftp://:8080",
        "http://:0",
        "http://:nobody/",
        "http://host.example:80/",
        "http://:80/?timeout=x",
        "http://:80/?failure=0",
        "http://:80/?once=1",
        "http://:80/?header=x",
        "tcp://:80/path",
        "grpc://:80?other=1",
        "http://:80/ü\u{1}",
    ] {
        let mut pod = with(json!({ "ports": [{ "containerPort": 80 }] }));
        pod["metadata"]["annotations"] = json!({ "podlight.dev/probe-app": value });
        let reason = decide(Subject::pod(&pod, None), &settings(&[])).expect_err(value);
        assert!(matches!(&reason, Reason::Setting { key, .. } if key == "podlight.dev/probe-app"), "{value}: {reason}");
        assert_eq!(reason.notice(), Notice::Everyone);
    }
    assert_eq!([left("bad-label"), left("bad-position")].map(|reason| reason.label()), ["setting"; 2]);
}

#[test]
fn pods_of_the_cluster_itself_and_of_the_activator_are_left_alone() {
    let pod = pod("http");
    let settings = settings(&["--activator-namespace=lights"]);
    for namespace in ["kube-system", "lights"] {
        let left = decide(Subject::pod(&pod, Some(namespace)), &settings);
        assert_eq!(left, Err(Reason::Namespace(namespace.to_owned())));
    }
    assert!(decide(Subject::pod(&pod, Some("podlight-system")), &settings).is_ok(), "nobody's");
}

#[test]
fn windows_pods_pods_by_hand_and_pods_that_opted_out_are_left_alone_in_silence() {
    for case in ["windows", "windows-by-selector", "by-hand", "disabled"] {
        assert_eq!(left(case).notice(), Notice::None, "{case}");
    }
}

#[test]
fn a_pod_that_is_none_is_left_alone() {
    for pod in [json!(null), json!([]), json!({ "spec": 1 }), json!({ "spec": { "containers": [{ "ports": 7 }] } })] {
        let left = decide(Subject::pod(&pod, None), &settings(&[]));
        assert!(matches!(left, Err(Reason::Malformed(_) | Reason::NothingToProbe)), "{pod}: {left:?}");
    }
}

#[test]
fn every_fault_of_the_flags_is_told_at_once() {
    let flags = [
        "--sidecar-image=",
        "--sidecar-pull-policy=Sometimes",
        "--sidecar-requests=cpu",
        "--sidecar-limits=cpu=much",
        "--sidecar-position=middle",
        "--sidecar-startup-probe=maybe",
        "--activator-namespace=A",
        "--activator-service=podlight",
        "--ca-config-map=a/b",
        "--revision-label=a b",
    ];
    let parsed = Flags::try_parse_from(["x"].iter().chain(&flags)).expect("flags");
    let mut faults = Faults::default();
    parsed.injection.check(&mut faults);
    let told = faults.to_string();
    for flag in flags {
        let flag = flag.split_once('=').expect("a flag").0;
        assert!(told.contains(&format!("{flag}:")), "{flag} in {told}");
    }
}

proptest! {
    /// What this side takes, the other does too.
    #[test]
    fn a_probe_that_an_annotation_may_name_is_one_to_the_sidecar(
        text in "(http|https|tcp|grpc)://(|localhost|10\\.0\\.0\\.1|\\[::1\\]):[0-9]{1,5}(/[a-z/%ü{]{0,6})?(\\?((period|timeout)=[0-9]{0,3}(s|ms|d)?|failure=[0-9]{1,2}|once|header=[A-Za-z:%0-9 ]{0,8}|[a-z]=[0-9])){0,2}",
    ) {
        let container = k8s_openapi::api::core::v1::Container { name: "app".to_owned(), ..Default::default() };
        if let Ok(written) = probe::written(&text, &container) {
            let parsed = written.parse::<podlight_sidecar::probe::Probe>();
            prop_assert!(parsed.is_ok() && !written.contains(' '), "{}: {:?}", written, parsed);
        }
    }

    /// Whatever path a kubelet may be told to ask for.
    #[test]
    fn any_path_of_a_probe_is_one_to_the_sidecar(path in "\\PC{0,20}", query in "(|\\?(header|once|period|a|)(=\\PC{0,4})?&?)") {
        let probe = json!({ "httpGet": { "port": 80, "path": format!("{path}{query}") } });
        if let Ok(probes) = probes_of(json!({ "readinessProbe": probe })) {
            let parsed = probes[0].parse::<podlight_sidecar::probe::Probe>();
            prop_assert!(!probes[0].contains(' '), "{}", probes[0]);
            prop_assert_eq!(parsed.map(|probe| probe.period.as_secs()), Ok(10));
        }
    }
}
