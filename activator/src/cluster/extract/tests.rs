use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::*;
use crate::table::entry::State;
use crate::table::group::{Family, Service, ServiceKind, Slice, TargetPort};

/// A running, ready pod with one probed container.
fn mk_pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "uid": "u-1", "resourceVersion": "7",
                     "labels": {"app": "web", "pod-template-hash": "abc"}},
        "spec": {"serviceAccountName": "web", "containers": [
            {"name": "app", "ports": [{"name": "http", "containerPort": 8080}], "readinessProbe": {"httpGet": {"port": 8080}}},
            {"name": crate::inject::CONTAINER, "startupProbe": {"exec": {"command": ["x"]}}, "readinessProbe": {"exec": {}}},
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
    assert_eq!((seen.phase, seen.terminating_since_ms), (Phase::Alive, None));
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
fn a_command_counts_unless_an_annotation_has_something_else_asked() {
    let exec = |annotations: Value| {
        observe(|p| {
            p["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["x"]}});
            p["metadata"]["annotations"] = annotations;
        })
        .has_exec_probe
    };
    assert!(exec(json!({})));
    assert!(exec(json!({"podlight.dev/probe-other": "tcp://:80"})));
    assert!(!exec(json!({"podlight.dev/probe-app": "tcp://:80"})));
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

/// A Service with more metadata than its name.
fn described(mut metadata: Value, spec: Value) -> Service {
    metadata["namespace"] = json!("shop");
    metadata["name"] = json!("web");
    let object: core::Service = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
    object.extract(&RevisionLabels::default()).unwrap().unwrap()
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

#[test]
fn a_service_with_addresses_is_a_cluster_service_whatever_its_type() {
    for kind in [json!(null), json!("ClusterIP"), json!("NodePort"), json!("LoadBalancer")] {
        let seen =
            service(json!({"type": kind, "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]})).unwrap();
        assert_eq!(seen.kind, ServiceKind::Cluster, "{kind}");
        assert_eq!(seen.cluster_ips, ["10.96.0.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }
}

#[test]
fn a_manifest_may_name_one_address_or_none() {
    let addresses = |spec: Value| service(spec).unwrap().cluster_ips;
    assert_eq!(addresses(json!({"clusterIP": "10.96.0.1"})), ["10.96.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(addresses(json!({"clusterIP": ""})), [] as [IpAddr; 0]);
    assert_eq!(addresses(json!({})), [] as [IpAddr; 0]);
    assert_eq!(service(json!({"clusterIPs": ["x"]})), Err(ExtractError::Address("x".into())));
}

#[test]
fn a_headless_service_has_no_addresses() {
    let seen = service(json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {"app": "web"}})).unwrap();
    assert_eq!((seen.kind, seen.cluster_ips), (ServiceKind::Headless, vec![]));
    assert_eq!(service(json!({"clusterIP": "None"})).unwrap().kind, ServiceKind::Headless);
}

#[test]
fn an_external_name_is_an_alias_and_keeps_who_it_is() {
    let external = json!({"type": "ExternalName", "externalName": "x.org", "clusterIP": "10.96.0.1"});
    let seen = described(json!({"uid": "u-1", "annotations": {"podlight.dev/route": "always"}}), external);
    assert_eq!((seen.kind, &*seen.uid, seen.cluster_ips), (ServiceKind::ExternalName, "u-1", vec![]));
    assert_eq!(seen.annotations.get("route").map(|v| &**v), Some("always"));
}

#[test]
fn the_families_of_a_service_keep_their_order() {
    let families = |families: Value| service(json!({"ipFamilies": families})).unwrap().families;
    assert_eq!(families(json!(["IPv6", "IPv4"])), [Family::V6, Family::V4]);
    assert_eq!(families(json!(["IPv4", "IPv7"])), [Family::V4], "one that is not known is no family");
    assert_eq!(families(json!(null)), []);
}

#[test]
fn a_port_says_what_is_spoken_on_it() {
    let protocols = json!(["kubernetes.io/h2c", "https", null]);
    let ports: Vec<Value> = protocols
        .as_array()
        .unwrap()
        .iter()
        .zip(80..)
        .map(|(p, n)| json!({"name": n.to_string(), "port": n, "appProtocol": p}))
        .collect();
    let seen = service(json!({"ports": ports})).unwrap();
    let spoken: Vec<_> = seen.ports.iter().map(|port| port.app_protocol.as_deref()).collect();
    assert_eq!(spoken, [Some("kubernetes.io/h2c"), Some("https"), None]);
}

#[test]
fn a_service_may_publish_pods_that_are_not_ready() {
    assert!(service(json!({"publishNotReadyAddresses": true})).unwrap().publish_not_ready);
    assert!(!service(json!({})).unwrap().publish_not_ready);
}

#[test]
fn a_service_is_as_old_as_its_creation_and_as_old_as_can_be_without() {
    let created = |at: Value| described(json!({"creationTimestamp": at}), json!({})).created_seconds;
    assert_eq!(created(json!("2026-01-02T03:04:05Z")), 1_767_323_045);
    assert_eq!(created(json!(null)), 0);
    assert_eq!(created(json!("1969-12-31T23:59:59Z")), 0);
}

#[test]
fn of_a_services_annotations_podlights_own_are_kept_by_their_short_names() {
    let annotations = json!({
        "podlight.dev/hosts": "a.test,*.b.test",
        "podlight.development/hosts": "no",
        "hosts": "no",
        "x.podlight.dev/hosts": "no",
    });
    let seen = described(json!({"annotations": annotations}), json!({}));
    let kept: Vec<_> = seen.annotations.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(kept, [("hosts", "a.test,*.b.test")]);
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
fn an_endpoint_that_is_published_all_the_same_is_what_its_other_conditions_say() {
    let state = |serving: bool, terminating: bool| {
        let conditions = json!({"ready": true, "serving": serving, "terminating": terminating});
        let seen = slice(|s| s["endpoints"][0]["conditions"] = conditions).unwrap().unwrap();
        (seen.endpoints[0].state, seen.endpoints[0].serving)
    };
    assert_eq!(state(true, false), (State::Ready, true));
    assert_eq!(state(false, false), (State::NotReady, false), "its probes fail");
    assert_eq!(state(true, true), (State::Terminating, true));
    assert_eq!(state(false, true), (State::Terminating, false));
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
