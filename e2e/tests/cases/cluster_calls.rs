//! What an activator asks of the API server besides watching: to scale from zero, to show an Event on a Service, to read
//! a Secret; with the rights that it has, and told in clear words which it has not.

use anyhow::{Context, Result};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use podlight_activator::cluster::{Reason, ScaleError, Scaled};
use podlight_activator::table::group::GroupKey;
use podlight_e2e::connection::Connection;
use podlight_e2e::eventually::eventually;
use serde_json::{Value, json};

use crate::scene;

fn deployment(namespace: &str, replicas: i32) -> Result<Deployment> {
    let labels = json!({"app": "web"});
    Ok(serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "app", "image": "example.invalid/app"}]},
            },
        },
    }))?)
}

/// Lets the activator scale what is in a namespace.
async fn may_scale(namespace: &str) -> Result<()> {
    let scene = scene().await;
    scene.control_plane.allow_scaling(namespace, "default", "activator").await?;
    let connection = Connection::open(scene.kubeconfig()).await?;
    eventually("the right has reached the API server", async || {
        let answer = connection.api.scale_up(namespace, "Deployment", "nobody").await;
        let known = matches!(&answer, Err(ScaleError::Final(told)) if told.contains("there is no Deployment nobody"));
        Ok(known.then_some(()))
    })
    .await
}

async fn replicas(namespace: &str) -> Result<(i32, Deployment)> {
    let deployment = Api::<Deployment>::namespaced(scene().await.control_plane.client()?, namespace).get("web").await?;
    Ok((deployment.spec.as_ref().and_then(|spec| spec.replicas).context("no replicas")?, deployment))
}

#[tokio::test]
async fn a_deployment_at_zero_is_taken_to_one_by_one_of_many_replicas_at_once() -> Result<()> {
    let scene = scene().await;
    let namespace = &scene.shop().await?.namespace;
    let connections = [Connection::open(scene.kubeconfig()).await?, Connection::open(scene.kubeconfig()).await?];
    may_scale(namespace).await?;
    scene.control_plane.create(deployment(namespace, 0)?).await?;
    let calls = connections.iter().cycle().take(8).map(|c| c.api.scale_up(namespace, "Deployment", "web"));
    let scaled: Result<Vec<Scaled>, ScaleError> = join_all(calls).await.into_iter().collect();
    let raised = scaled?.into_iter().filter(|scaled| *scaled == Scaled::Raised).count();
    let (replicas, deployment) = replicas(namespace).await?;
    assert_eq!((raised, replicas), (1, 1));
    let managers = deployment.metadata.managed_fields.unwrap_or_default();
    let ours = managers.iter().find(|m| m.manager.as_deref() == Some("podlight")).context("the field has an owner")?;
    assert_eq!(ours.subresource.as_deref(), Some("scale"));
    assert_eq!(connections[0].api.scale_up(namespace, "Deployment", "web").await, Ok(Scaled::Already));
    Ok(())
}

#[tokio::test]
async fn a_deployment_with_replicas_keeps_them() -> Result<()> {
    let scene = scene().await;
    let namespace = &scene.shop().await?.namespace;
    let connection = Connection::open(scene.kubeconfig()).await?;
    may_scale(namespace).await?;
    scene.control_plane.create(deployment(namespace, 3)?).await?;
    assert_eq!(connection.api.scale_up(namespace, "Deployment", "web").await, Ok(Scaled::Already));
    assert_eq!(replicas(namespace).await?.0, 3);
    let missing = connection.api.scale_up(namespace, "StatefulSet", "web").await;
    assert!(
        matches!(&missing, Err(ScaleError::Final(told)) if told.contains("there is no StatefulSet web")),
        "{missing:?}"
    );
    Ok(())
}

#[tokio::test]
async fn without_the_right_to_scale_the_missing_rule_is_told() -> Result<()> {
    let scene = scene().await;
    let namespace = &scene.shop().await?.namespace;
    scene.control_plane.create_service_account(namespace, "powerless").await?;
    let connection = Connection::open(&scene.control_plane.kubeconfig_for(namespace, "powerless").await?).await?;
    scene.control_plane.create(deployment(namespace, 0)?).await?;
    let refused = connection.api.scale_up(namespace, "Deployment", "web").await;
    let rule = "get and patch on deployments/scale of the API group apps";
    assert!(matches!(&refused, Err(ScaleError::Final(told)) if told.contains(rule)), "{refused:?}");
    assert_eq!(replicas(namespace).await?.0, 0);
    Ok(())
}

/// A kind with a scale, and one without.
fn definitions() -> Value {
    let definition = |kind: &str, subresources: Value| {
        let singular = kind.to_ascii_lowercase();
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        json!({
            "metadata": {"name": format!("{singular}s.podlight.test")},
            "spec": {
                "group": "podlight.test",
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": format!("{singular}s"), "singular": singular},
                "versions": [{
                    "name": "v1alpha1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": schema}, "subresources": subresources,
                }],
            },
        })
    };
    let scale = json!({"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"});
    json!([definition("Rollout", json!({"scale": scale})), definition("Thing", json!({}))])
}

#[tokio::test]
async fn a_custom_resource_with_a_scale_is_found_and_scaled() -> Result<()> {
    let scene = scene().await;
    let namespace = &scene.shop().await?.namespace;
    let client = scene.control_plane.client()?;
    for definition in definitions().as_array().into_iter().flatten() {
        let definitions = Api::<CustomResourceDefinition>::all(client.clone());
        definitions.create(&PostParams::default(), &serde_json::from_value(definition.clone())?).await?;
    }
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("podlight.test", "v1alpha1", "Rollout"));
    let rollouts: Api<DynamicObject> = Api::namespaced_with(client, namespace, &kind);
    let rollout = DynamicObject::new("web", &kind).data(json!({"spec": {"replicas": 0}}));
    eventually("the kind is served", async || Ok(rollouts.create(&PostParams::default(), &rollout).await.ok())).await?;

    // An account of its own: what one test grants, another wants to miss.
    scene.control_plane.create_service_account(namespace, "activator").await?;
    let connection = Connection::open(&scene.control_plane.kubeconfig_for(namespace, "activator").await?).await?;
    let scale_up = async |kind: &'static str| connection.api.scale_up(namespace, kind, "web").await;
    let refused = eventually("discovery has the kind", async || {
        let refused = scale_up("Rollout.podlight.test").await;
        Ok(Some(refused)
            .filter(|r| !matches!(r, Err(ScaleError::Final(told)) if told.contains("is not a namespaced kind"))))
    });
    let rule = "get and patch on rollouts/scale of the API group podlight.test";
    assert!(matches!(refused.await?, Err(ScaleError::Final(told)) if told.contains(rule)));
    let rules = json!([{"apiGroups": ["podlight.test"], "resources": ["rollouts/scale"], "verbs": ["get", "patch"]}]);
    scene.control_plane.grant(namespace, "activator", &format!("{namespace}-rollouts"), rules).await?;
    let scaled = eventually("the right is there", async || Ok(scale_up("Rollout.podlight.test").await.ok())).await?;
    assert_eq!(scaled, Scaled::Raised);
    assert_eq!(scale_up("Rollout.podlight.test").await, Ok(Scaled::Already));
    assert_eq!(rollouts.get("web").await?.data["spec"]["replicas"], 1);

    let without = eventually("discovery has the other kind", async || {
        let told = scale_up("Thing.podlight.test").await.err().map(|error| error.to_string());
        Ok(told.filter(|told| !told.contains("is not a namespaced kind")))
    });
    assert_eq!(without.await?, "Thing.podlight.test has no scale subresource");
    Ok(())
}

#[tokio::test]
async fn a_fault_of_a_service_is_one_event_whoever_reports_it() -> Result<()> {
    let scene = scene().await;
    let namespace = &scene.shop().await?.namespace;
    let client = scene.control_plane.client()?;
    let service = Api::<k8s_openapi::api::core::v1::Service>::namespaced(client.clone(), namespace).get("web").await?;
    let (key, uid) = (GroupKey::new(namespace, "web"), podlight_e2e::control_plane::uid(&service));
    let events = Api::<Event>::namespaced(client, namespace);
    let of_service = ListParams::default().fields("involvedObject.kind=Service,involvedObject.name=web");
    let told = async |words: &'static str| {
        eventually("the Event is there", async || {
            // The API server reports on Services as well.
            let ours = |event: &Event| {
                event.source.as_ref().is_some_and(|source| source.component.as_deref() == Some("podlight-activator"))
            };
            let all: Vec<Event> = events.list(&of_service).await?.items.into_iter().filter(ours).collect();
            Ok(all.iter().any(|e| e.message.as_deref() == Some(words)).then_some(all))
        })
        .await
    };
    let (first, second) = (Connection::open(scene.kubeconfig()).await?, Connection::open(scene.kubeconfig()).await?);
    first.api.report(&key, &uid, Reason::InvalidAnnotation, "podlight.dev/port: no such port");
    let seen = told("podlight.dev/port: no such port").await?;
    let [event] = &*seen else { panic!("one Event: {seen:?}") };
    assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Warning"), Some("InvalidAnnotation")));
    assert_eq!(event.involved_object.uid.as_ref(), Some(&uid));
    second.api.report(&key, &uid, Reason::InvalidAnnotation, "podlight.dev/port: not a port either");
    assert_eq!(told("podlight.dev/port: not a port either").await?.len(), 1);
    second.api.report(&key, &uid, Reason::HostConflict, "taken");
    assert_eq!(told("taken").await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_secret_is_read_where_it_may_be() -> Result<()> {
    let scene = scene().await;
    let namespace = &scene.shop().await?.namespace;
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": "ca"}, "stringData": {"ca.crt": "PEM"},
    }))?;
    scene.control_plane.create(secret).await?;
    scene.control_plane.create_service_account(namespace, "activator").await?;
    let connection = Connection::open(&scene.control_plane.kubeconfig_for(namespace, "activator").await?).await?;
    let refused = connection.api.secret(namespace, "ca").await.err().map(|error| error.to_string());
    assert!(refused.as_deref().is_some_and(|told| told.contains("needs get")), "{refused:?}");
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
    scene.control_plane.grant(namespace, "activator", &format!("{namespace}-secrets"), rules).await?;
    let read = eventually("the right is there", async || Ok(connection.api.secret(namespace, "ca").await.ok())).await?;
    assert_eq!(read["ca.crt"], b"PEM");
    let missing = connection.api.secret(namespace, "other").await.err().map(|error| error.to_string());
    assert_eq!(missing, Some(format!("there is no Secret other in namespace {namespace}")));
    Ok(())
}
