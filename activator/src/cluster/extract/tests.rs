use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::*;
use crate::table::entry::State;
use crate::table::group::{Service, Slice, TargetPort};

/// A running, ready pod with one probed container.
fn mk_pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "uid": "u-1", "resourceVersion": "7",
                     "labels": {"app": "web", "pod-template-hash": "abc"}},
        "spec": {"serviceAccountName": "web", "containers": [
            {"name": "app", "ports": [{"name": "http", "containerPort": 8080}], "readinessProbe": {"httpGet": {"port": 8080}}},
            {"name": SIDECAR_CONTAINER, "startupProbe": {"exec": {"command": ["x"]}}, "readinessProbe": {"exec": {}}},
        ]},
        "status": {"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}, {"ip": "fd00::9"}], "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"},
        ]},
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn observe(change: impl FnOnce(&mut Value)) -> Observation {
    observation(&mk_pod(change), &RevisionLabels::default()).unwrap()
}

#[test]
fn a_pod_is_reduced_to_what_counts() {
    let seen = observe(|_| {});
    assert_eq!(seen.pod, PodRef::new("shop", "web-1", "u-1").unwrap());
    assert_eq!((seen.resource_version, &*seen.service_account, &*seen.revision), (7, "web", "abc"));
    assert_eq!((seen.phase, seen.terminating_since_ms, seen.host_network), (Phase::Alive, None, false));
    assert_eq!(seen.addresses, ["10.0.0.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
    assert_eq!(seen.ready, Some(ReadyCondition { ready: true, since_seconds: 1_767_323_045 }));
    assert_eq!((seen.gates_open, seen.has_exec_probe, seen.has_readiness_probe), (true, false, true));
    let http = ContainerPort { name: "http".into(), port: 8080, protocol: Protocol::Tcp };
    assert_eq!(seen.ports, [http]);
    assert_eq!(seen.labels.get("app").map(|v| &**v), Some("web"));
}

#[test]
fn what_is_absent_has_its_default() {
    let seen = observe(|p| {
        *p = json!({"metadata": {"namespace": "a", "name": "b", "uid": "c", "resourceVersion": "1"}});
    });
    assert_eq!((seen.phase, seen.ready, &*seen.service_account, &*seen.revision), (Phase::Alive, None, "default", ""));
    assert!(seen.addresses.is_empty() && seen.ports.is_empty() && seen.gates_open);
    assert!(!seen.has_exec_probe && !seen.has_readiness_probe);
}

#[test]
fn phases() {
    let phase = |phase: &str| observe(|p| p["status"]["phase"] = json!(phase)).phase;
    assert_eq!(["Pending", "Running", "Unknown"].map(phase), [Phase::Alive; 3]);
    assert_eq!(["Succeeded", "Failed"].map(phase), [Phase::Ended; 2]);
}

#[test]
fn termination_began_a_grace_before_its_deadline() {
    let since = |grace: Value| {
        observe(|p| {
            p["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
            p["metadata"]["deletionGracePeriodSeconds"] = grace;
        })
        .terminating_since_ms
    };
    assert_eq!(since(json!(30)), Some(1_767_323_015_000));
    assert_eq!(since(json!(null)), Some(1_767_323_045_000));
    assert_eq!(since(json!(i64::MAX)), Some(0));
}

#[test]
fn a_mapped_address_is_the_ipv4_address_and_one_address_is_enough() {
    let mapped = observe(|p| p["status"]["podIPs"] = json!([{"ip": "::ffff:10.0.0.9"}]));
    assert_eq!(mapped.addresses, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
    let old = observe(|p| p["status"]["podIPs"] = json!(null));
    assert_eq!(old.addresses, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
}

#[test]
fn readiness_is_the_condition_true() {
    let ready = |status: &str| observe(|p| p["status"]["conditions"][0]["status"] = json!(status)).ready.unwrap().ready;
    assert_eq!(["True", "False", "Unknown"].map(ready), [true, false, false]);
}

#[test]
fn a_gate_is_open_only_when_its_condition_is_true() {
    let open = |conditions: Value| {
        observe(|p| {
            p["spec"]["readinessGates"] = json!([{"conditionType": "lb"}, {"conditionType": "dns"}]);
            p["status"]["conditions"] = conditions;
        })
        .gates_open
    };
    let condition = |name: &str, status: &str| json!({"type": name, "status": status});
    assert!(!open(json!([condition("lb", "True")])));
    assert!(!open(json!([condition("lb", "True"), condition("dns", "False")])));
    assert!(open(json!([condition("dns", "True"), condition("lb", "True")])));
}

#[test]
fn exec_probes_count_where_they_decide_readiness() {
    let exec = json!({"exec": {"command": ["ready"]}});
    let has = |change: &dyn Fn(&mut Value)| observe(change).has_exec_probe;
    assert!(has(&|p| p["spec"]["containers"][0]["readinessProbe"] = exec.clone()));
    assert!(has(&|p| p["spec"]["containers"][0]["startupProbe"] = exec.clone()));
    assert!(!has(&|p| p["spec"]["containers"][0]["livenessProbe"] = exec.clone()));
    let init = |policy: Value| json!([{"name": "helper", "restartPolicy": policy, "startupProbe": exec.clone()}]);
    assert!(has(&|p| p["spec"]["initContainers"] = init(json!("Always"))));
    assert!(!has(&|p| p["spec"]["initContainers"] = init(json!(null))));
}

#[test]
fn a_pod_without_the_apps_readiness_probe_is_known_as_such() {
    let seen = observe(|p| p["spec"]["containers"][0]["readinessProbe"] = json!(null));
    assert!(!seen.has_readiness_probe);
}

#[test]
fn ports_of_main_and_restartable_init_containers_are_declared() {
    let seen = observe(|p| {
        p["spec"]["initContainers"] = json!([
            {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
            {"name": "setup", "ports": [{"containerPort": 1}]},
        ]);
    });
    let declared: Vec<_> = seen.ports.iter().map(|p| (&*p.name, p.port, p.protocol)).collect();
    assert_eq!(declared, [("http", 8080, Protocol::Tcp), ("dns", 53, Protocol::Udp)]);
}

#[test]
fn the_first_revision_label_that_is_there_counts() {
    let ours = observe(|p| p["metadata"]["labels"]["podlight.dev/revision"] = json!("r2"));
    assert_eq!(&*ours.revision, "r2");
    let labels: RevisionLabels = ["app".to_owned()].into_iter().collect();
    assert_eq!(&*observation(&mk_pod(|_| {}), &labels).unwrap().revision, "web");
}

#[test]
fn a_malformed_pod_is_refused() {
    type Change = fn(&mut Value);
    let cases: [(Change, ExtractError); 7] = [
        (|p| p["metadata"]["uid"] = json!(null), ExtractError::Identity(ShapeError::Issuer)),
        (|p| p["metadata"]["namespace"] = json!("A B"), ExtractError::Identity(ShapeError::Issuer)),
        (|p| p["metadata"]["resourceVersion"] = json!("7a"), ExtractError::ResourceVersion("7a".into())),
        (|p| p["status"]["podIPs"] = json!([{"ip": "fe80::1%eth0"}]), ExtractError::Address("fe80::1%eth0".into())),
        (|p| p["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(0), ExtractError::Port(0)),
        (|p| p["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(65536), ExtractError::Port(65536)),
        (|p| p["spec"]["containers"][0]["ports"][0]["protocol"] = json!("ICMP"), ExtractError::Protocol("ICMP".into())),
    ];
    for (change, expected) in cases {
        assert_eq!(observation(&mk_pod(change), &RevisionLabels::default()), Err(expected));
    }
}

fn service(spec: Value) -> Result<Service, ExtractError> {
    let object = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec});
    let object: core::Service = serde_json::from_value(object).unwrap();
    Ok(object.extract(&RevisionLabels::default())?.unwrap())
}

#[test]
fn a_services_ports_lead_to_numbers_or_names() {
    let seen = service(json!({"selector": {"app": "web"}, "ports": [
        {"name": "a", "port": 80, "targetPort": 8080},
        {"name": "b", "port": 81, "targetPort": "http"},
        {"name": "c", "port": 82, "protocol": "UDP"},
    ]}))
    .unwrap();
    let ports: Vec<_> = seen.ports.iter().map(|p| (&*p.name, p.port, p.target.clone(), p.protocol)).collect();
    assert_eq!(
        ports,
        [
            ("a", 80, TargetPort::Number(8080), Protocol::Tcp),
            ("b", 81, TargetPort::Name("http".into()), Protocol::Tcp),
            ("c", 82, TargetPort::Number(82), Protocol::Udp),
        ]
    );
    assert!(seen.selector.is_some());
}

#[test]
fn an_empty_selector_is_none_and_an_external_name_has_nothing() {
    assert_eq!(service(json!({"selector": {}})).unwrap().selector, None);
    let external =
        json!({"type": "ExternalName", "externalName": "x.org", "selector": {"a": "b"}, "ports": [{"port": 80}]});
    let seen = service(external).unwrap();
    assert_eq!((seen.selector, seen.ports.len()), (None, 0));
    assert_eq!(service(json!({"ports": [{"port": 70000}]})), Err(ExtractError::Port(70000)));
}

fn slice(change: impl FnOnce(&mut Value)) -> Result<Option<Slice>, ExtractError> {
    let mut object = json!({
        "metadata": {"namespace": "shop", "name": "db-x", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "ports": [{"name": null, "port": 5432}, {"name": "all"}],
        "endpoints": [{"addresses": ["10.0.0.1", "10.0.0.2"]}],
    });
    change(&mut object);
    serde_json::from_value::<EndpointSlice>(object).unwrap().extract(&RevisionLabels::default())
}

#[test]
fn a_slice_has_its_first_addresses_and_its_numbered_ports() {
    let seen = slice(|_| {}).unwrap().unwrap();
    assert_eq!((&*seen.group.namespace, &*seen.group.service, &*seen.key.name), ("shop", "db", "db-x"));
    assert_eq!(seen.ports.iter().map(|p| (&*p.name, p.port)).collect::<Vec<_>>(), [("", 5432)]);
    assert_eq!(seen.endpoints.len(), 1);
    assert_eq!(seen.endpoints[0].address, "10.0.0.1".parse::<IpAddr>().unwrap());
}

#[test]
fn slices_of_names_or_of_no_service_are_of_no_concern() {
    assert_eq!(slice(|s| s["addressType"] = json!("FQDN")), Ok(None));
    assert_eq!(slice(|s| s["metadata"]["labels"] = json!({})), Ok(None));
    assert_eq!(slice(|s| s["endpoints"] = json!([{"addresses": []}])).unwrap().unwrap().endpoints, []);
    assert_eq!(slice(|s| s["endpoints"][0]["addresses"] = json!(["x"])), Err(ExtractError::Address("x".into())));
}

#[test]
fn absent_conditions_mean_ready_and_serving() {
    let state = |conditions: Value| {
        let seen = slice(|s| s["endpoints"][0]["conditions"] = conditions).unwrap().unwrap();
        (seen.endpoints[0].state, seen.endpoints[0].serving)
    };
    assert_eq!(state(json!(null)), (State::Ready, true));
    assert_eq!(state(json!({"ready": false})), (State::NotReady, false));
    assert_eq!(state(json!({"ready": false, "serving": true})), (State::NotReady, true));
    assert_eq!(state(json!({"ready": true, "terminating": true})), (State::Terminating, true));
    assert_eq!(state(json!({"ready": false, "serving": true, "terminating": true})), (State::Terminating, true));
}

#[test]
fn a_slices_endpoint_names_its_pod() {
    let pod = |target: Value| {
        let seen = slice(|s| s["endpoints"][0]["targetRef"] = target).unwrap().unwrap();
        seen.endpoints[0].pod.clone()
    };
    let named = PodRef::new("shop", "db-0", "u-2").unwrap();
    assert_eq!(pod(json!({"kind": "Pod", "name": "db-0", "uid": "u-2"})), Some(named.clone()));
    assert_eq!(pod(json!({"kind": "Pod", "namespace": "shop", "name": "db-0", "uid": "u-2"})), Some(named));
    assert_eq!(pod(json!({"kind": "Pod", "name": "db-0"})), None);
    assert_eq!(pod(json!({"kind": "Node", "name": "db-0", "uid": "u-2"})), None);
}
