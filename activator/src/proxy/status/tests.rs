use std::sync::Arc;

use super::*;
use crate::proxy::annotations::parse;
use crate::proxy::fixtures::*;
use crate::proxy::route::RouteTable;
use crate::proxy::target::{HoldConfig, Hub, Target};

#[tokio::test]
async fn views_show_hosts_settings_faults_and_what_endpoints_do() {
    let web = annotated(service("web"), &[("concurrency", "many"), ("hosts", "web.example.com")]);
    let (hub, _errands) = Hub::new(&HoldConfig::default());
    let target = Target::new(&web, settings(&web), &hub);
    for (uid, address) in [("b", "10.0.0.2"), ("a", "10.0.0.1")] {
        let endpoint = pushed(uid, address);
        target.endpoint(&endpoint.id.clone(), Some(endpoint));
    }
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    let lease = target.admit(&[], deadline, 0).await.expect("ready");
    lease.refused();
    let mut table = RouteTable::new("cluster.local");
    let (spec, faults) = parse(&web, None);
    table.put(&Arc::new(web), Taker::Target(target), &spec.hosts.unwrap_or_default(), faults);
    table.put(&Arc::new(service("alias")), Taker::Nobody("an alias".into()), &[], Vec::new());
    table.publish();

    let view = |service: &str| {
        let listed = table.routes().listed();
        let listed = listed.iter().find(|listed| *listed.service.key.service == *service).expect("is listed");
        serde_json::to_value(TargetView::of(listed, 10)).expect("JSON")
    };
    let alias = view("alias");
    assert_eq!((&alias["settings"], &alias["faults"][0]), (&serde_json::Value::Null, &"an alias".into()));
    let web = view("web");
    assert_eq!(web["hosts"].as_array().map(Vec::len), Some(4));
    assert_eq!((&web["settings"]["mode"], &web["settings"]["protocol"]), (&"always".into(), &"http1".into()));
    assert!(web["faults"][0].as_str().is_some_and(|fault| fault.contains("concurrency")));
    assert_eq!((&web["held"], &web["in_flight"]), (&0.into(), &1.into()));
    let backends = web["backends"].as_array().expect("three");
    let pods: Vec<&serde_json::Value> = backends.iter().map(|backend| &backend["pod"]).collect();
    assert_eq!(pods, [&serde_json::json!("pod-a"), &"pod-b".into(), &serde_json::Value::Null]);
    assert_eq!((&backends[0]["state"], &backends[0]["source"]), (&"ready".into(), &"pushed".into()));
    assert_eq!(backends[2]["way"], "cluster-ip");
    let shut = backends.iter().filter(|backend| !backend["quarantine_seconds"].is_null());
    assert_eq!(shut.map(|backend| &backend["in_flight"]).collect::<Vec<_>>(), [&serde_json::json!(1)]);
}
