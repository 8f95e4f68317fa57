//! Rights: with those that the chart grants both programs work, and each of them is used: a program that lacks it is told
//! so by the API server, says so with the verb and the resource, and goes on when it is granted.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use podlight_activator::cluster::ApiError;
use podlight_e2e::activator::{Activator, ActivatorSpec};
use podlight_e2e::api::Reader;
use podlight_e2e::chart::{Release, apply, find, pod_of};
use podlight_e2e::connection::Connection;
use podlight_e2e::control_plane::{ControlPlane, Options, PodSpec, ServiceSpec, TokenSpec};
use podlight_e2e::eventually::eventually;
use podlight_e2e::scene::Scene;
use podlight_e2e::webhook::{NAMESPACE, Webhook, configure};
use podlight_proto::Kind;
use serde_json::{Value, json};

/// One verb on one resource.
type Right = (String, String);

/// All rights of a role's rules.
fn rights(role: &Value) -> Vec<Right> {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let rules = role["rules"].as_array().into_iter().flatten();
    rules
        .flat_map(|rule| {
            let (resources, verbs) = (strings(&rule["resources"]), strings(&rule["verbs"]));
            resources.into_iter().flat_map(move |resource| {
                verbs.clone().into_iter().map(move |verb| (resource.clone(), verb)).collect::<Vec<_>>()
            })
        })
        .collect()
}

/// A role's rules but for some rights.
fn without(role: &Value, left_out: &[&Right]) -> Value {
    let mut rules = role["rules"].clone();
    for rule in rules.as_array_mut().into_iter().flatten() {
        let resource = rule["resources"][0].clone();
        if let Some(verbs) = rule["verbs"].as_array_mut() {
            verbs.retain(|verb| !left_out.iter().any(|(of, left)| resource == **of && *verb == **left));
        }
    }
    let kept = rules.as_array().into_iter().flatten().filter(|rule| rule["verbs"] != json!([]));
    kept.cloned().collect()
}

/// What the API server says of a right that is missing.
fn refusal((resource, verb): &Right) -> String {
    format!("cannot {verb} resource \"{resource}\"")
}

/// A ServiceAccount in a namespace of its own with these rules, and its kubeconfig.
async fn account(control_plane: &ControlPlane, namespace: &str, rules: Value) -> Result<PathBuf> {
    control_plane.create_namespace(namespace).await?;
    control_plane.create_service_account(namespace, "activator").await?;
    control_plane.grant(namespace, "activator", namespace, rules).await?;
    control_plane.kubeconfig_for(namespace, "activator").await
}

/// Makes an activator do everything that it has a right for. What comes of it is looked at elsewhere.
async fn exercise(scene: &Scene, activator: &Activator) -> Result<()> {
    let ready = eventually("it has listed the cluster", async || {
        Ok(activator.admin("/readyz").await?.body.contains("cluster: listed").then_some(()))
    });
    if ready.await.is_err() {
        return Ok(());
    }
    let shop = scene.shop().await?;
    let web = shop.web("web-0").await?;
    web.sender.event(Kind::NotReady).token(&web.token).sign().post(&activator.url()).await?;
    Reader::new(&activator.url(), scene.reader_token())?.get("/v1/targets").await?;
    Ok(())
}

#[tokio::test]
async fn the_activator_works_with_its_rights_and_uses_each_of_them() -> Result<()> {
    let objects = Release::new()?.render()?;
    let role = find(&objects, "ClusterRole", "podlight-activator")?;
    let scene = Scene::start(0).await?;

    let kubeconfig = account(&scene.control_plane, "all-rights", role["rules"].clone()).await?;
    let faulty = ServiceSpec::new("all-rights", "faulty").port("http", 80, "http");
    scene.control_plane.create_service(faulty.annotation("podlight.dev/route", "nonsense")).await?;
    let activator = ActivatorSpec::new(&kubeconfig).proxy()?.start().await?;
    let shop = scene.shop().await?;
    let web = shop.web("web-0").await?;
    web.sender.introduce(&activator.url(), &web.token).await?;
    let reader = scene.reader_of(&activator)?;
    assert_eq!(reader.get("/v1/targets").await?.status, 200);
    let events: Api<Event> = Api::namespaced(scene.control_plane.client()?, "all-rights");
    eventually("the fault is told", async || {
        Ok((!events.list(&ListParams::default()).await?.items.is_empty()).then_some(()))
    })
    .await?;
    assert!(Connection::open(&kubeconfig).await?.api.fetch_pod("default", "reader").await?.is_some());
    let log = activator.log_text()?;
    assert!(!log.contains("forbidden"), "{log}");
    drop(activator);

    for (at, right) in rights(role).iter().enumerate() {
        let namespace = format!("right-{at}");
        let kubeconfig = account(&scene.control_plane, &namespace, without(role, &[right])).await?;
        if right.1 == "get" {
            // No test can be faster than the watch: what an event from an unseen pod leads to is done by itself.
            let connection = Connection::open(&kubeconfig).await?;
            eventually(&refusal(right), async || {
                let fetched = connection.api.fetch_pod("default", "reader").await;
                Ok(matches!(fetched, Err(ApiError::OwnCredential)).then_some(()))
            })
            .await?;
            continue;
        }
        let faulty = ServiceSpec::new(&namespace, "faulty").port("http", 80, "http");
        scene.control_plane.create_service(faulty.annotation("podlight.dev/route", "nonsense")).await?;
        let activator =
            ActivatorSpec::new(&kubeconfig).proxy()?.flag("log", "info,podlight_activator=debug").spawn()?;
        if right.1 != "list" {
            exercise(&scene, &activator).await?;
        }
        eventually(&refusal(right), async || Ok(activator.log_text()?.contains(&refusal(right)).then_some(())))
            .await
            .with_context(|| activator.log_tail())?;
        if right.1 == "list" {
            assert_eq!(activator.admin("/readyz").await?.status, 503, "{right:?}");
            let granted = format!("{namespace}-rest");
            scene.control_plane.grant(&namespace, "activator", &granted, role["rules"].clone()).await?;
            activator.wait_ready().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_activator_scales_and_reads_secrets_with_its_rights_and_uses_each_of_them() -> Result<()> {
    let objects = Release::new()?.values(&super::matrix_file("everything-values.yaml")).render()?;
    let in_shop = |name: &str| {
        let found = objects.iter().find(|object| {
            object["kind"] == "Role" && object["metadata"]["namespace"] == "shop" && object["metadata"]["name"] == name
        });
        found.with_context(|| format!("no Role {name}"))
    };
    let (scale, secrets) = (in_shop("podlight-lights-activator-scale")?, in_shop("podlight-lights-activator-secrets")?);
    let control_plane = ControlPlane::start(Options::default()).await?;
    let scales: Vec<_> = rights(scale).into_iter().filter(|(resource, _)| resource == "deployments/scale").collect();
    let variants = [None].into_iter().chain(scales.into_iter().chain(rights(secrets)).map(Some));
    for (at, right) in variants.enumerate() {
        let namespace = format!("variant-{at}");
        let left_out: Vec<_> = right.iter().collect();
        let kubeconfig = account(&control_plane, &namespace, json!([])).await?;
        control_plane.grant_in(&namespace, "activator", "scale", without(scale, &left_out)).await?;
        control_plane.grant_in(&namespace, "activator", "secrets", without(secrets, &left_out)).await?;
        let labels = json!({ "app": "web" });
        let deployment = json!({
            "metadata": { "namespace": namespace, "name": "web" },
            "spec": { "replicas": 0, "selector": { "matchLabels": labels }, "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "app", "image": "example.invalid/app" }] },
            } },
        });
        control_plane.create::<Deployment>(serde_json::from_value(deployment)?).await?;
        let secret =
            json!({ "metadata": { "namespace": namespace, "name": "web-ca" }, "stringData": { "ca.crt": "PEM" } });
        control_plane.create::<Secret>(serde_json::from_value(secret)?).await?;
        let connection = Connection::open(&kubeconfig).await?;
        eventually(&right.as_ref().map_or("all is allowed".to_owned(), refusal), async || {
            let scaled = connection.api.scale_up(&namespace, "Deployment", "web").await;
            let read = connection.api.secret(&namespace, "web-ca").await;
            Ok(match &right {
                None => (scaled.is_ok() && read.is_ok()).then_some(()),
                Some(right) if right.0 == "secrets" => {
                    let told = read.err().map(|error| error.to_string()).unwrap_or_default();
                    (scaled.is_ok() && told.contains("needs get on it")).then_some(())
                }
                Some(right) => {
                    let told = scaled.err().map(|error| error.to_string()).unwrap_or_default();
                    (read.is_ok() && told.contains(&refusal(right))).then_some(())
                }
            })
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn readers_and_helm_test_are_let_in_by_the_charts_roles() -> Result<()> {
    let objects = Release::new()?.render()?;
    let scene = Scene::start(1).await?;
    let activator = &scene.activators[0];
    let shop = scene.shop().await?;
    let token = async |role: &str| -> Result<String> {
        let rules = find(&objects, "ClusterRole", role)?["rules"].clone();
        scene.control_plane.create_service_account(&shop.namespace, role).await?;
        scene.control_plane.grant(&shop.namespace, role, role, rules).await?;
        let pod = PodSpec::new(&shop.namespace, role).service_account(role);
        let pod = scene.control_plane.create_pod(pod, None).await?;
        scene.control_plane.token(&TokenSpec::for_pod(&pod)).await
    };
    let (tester, reader) = (token("podlight-test").await?, token("podlight-reader").await?);
    eventually("the test passes", async || {
        let (status, said) = activator.run_status(&tester, &shop.namespace).await?;
        if status.success() { Ok(Some(())) } else { bail!("{said}") }
    })
    .await?;
    for path in ["/v1/targets".to_owned(), format!("/v1/targets/{}/web", shop.namespace)] {
        eventually(&path, async || {
            Ok((Reader::new(&activator.url(), &reader)?.get(&path).await?.status == 200).then_some(()))
        })
        .await?;
        let tester = Reader::new(&activator.url(), &tester)?.get(&path).await?.status;
        assert_eq!(tester, if path == "/v1/targets" { 200 } else { 403 }, "{path}");
    }
    Reader::new(&activator.url(), &reader)?.watch(None).await?;
    Ok(())
}

/// What is left of the chart's flags when a test says where it listens and how it logs.
fn flags(objects: &[Value]) -> Result<Vec<String>> {
    let webhook = pod_of(find(objects, "Deployment", "podlight-webhook")?).context("pods")?;
    let flags = webhook["spec"]["containers"][0]["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let own = ["--listen", "--admin-listen", "--log-format", "--log", "--shutdown-delay"];
    let kept = flags.skip(1).filter(|flag| !own.contains(&flag.split('=').next().unwrap_or_default()));
    Ok(kept.map(str::to_owned).chain(["--log=debug".to_owned()]).collect())
}

/// A webhook of the chart with these rules, and a namespace where it has something to do. What was there before goes.
async fn webhook(
    control_plane: &ControlPlane,
    objects: &[Value],
    name: &str,
    [of_cluster, of_namespace]: [Value; 2],
) -> Result<Webhook> {
    let client = control_plane.client()?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    secrets.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    for secret in objects.iter().filter(|object| object["kind"] == "Secret") {
        apply(&client, secret, false).await?;
    }
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": { "podlight.dev/inject": "enabled" } } });
    apply(&client, &namespace, false).await?;
    control_plane.create_service_account(NAMESPACE, name).await?;
    control_plane.grant(NAMESPACE, name, name, of_cluster).await?;
    control_plane.grant_in(NAMESPACE, name, name, of_namespace).await?;
    let kubeconfig = control_plane.kubeconfig_for(NAMESPACE, name).await?;
    let flags = flags(objects)?;
    let webhook = Webhook::spawn(&kubeconfig, &flags.iter().map(String::as_str).collect::<Vec<_>>())?;
    configure(control_plane, webhook.port()).await?;
    Ok(webhook)
}

/// A pod that is left without a sidecar, which an Event says.
async fn create_left(control_plane: &ControlPlane, namespace: &str, name: &str) -> Result<()> {
    let pod = json!({
        "metadata": { "name": name },
        "spec": { "serviceAccountName": "default", "containers": [{ "name": "app", "image": "example.invalid/app",
            "readinessProbe": { "exec": { "command": ["x"] } } }] },
    });
    let pods: Api<Pod> = Api::namespaced(control_plane.client()?, namespace);
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    Ok(())
}

#[tokio::test]
async fn the_webhook_works_with_its_rights_and_uses_each_of_them() -> Result<()> {
    let objects = Release::new()?.render()?;
    let of_cluster = find(&objects, "ClusterRole", "podlight-webhook")?;
    let of_namespace = find(&objects, "Role", "podlight-webhook")?;
    let control_plane = ControlPlane::start(Options::default()).await?;
    control_plane.create_namespace(NAMESPACE).await?;
    let client = control_plane.client()?;

    let all = [of_cluster["rules"].clone(), of_namespace["rules"].clone()];
    let running = webhook(&control_plane, &objects, "all-rights", all).await?;
    running.wait_ready().await?;
    let handed_out: Api<ConfigMap> = Api::namespaced(client.clone(), "all-rights");
    eventually("the CA is handed out", async || Ok(handed_out.get_opt("podlight-ca").await?)).await?;
    let configuration: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let told = configuration.get("podlight").await?.webhooks.into_iter().flatten();
    assert!(told.into_iter().all(|webhook| webhook.client_config.ca_bundle.is_some()));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let certificate = secrets.get("podlight-activator-tls").await?;
    assert!(
        ["tls.crt", "tls.key", "ca.crt"].iter().all(|key| certificate.data.iter().any(|data| data.contains_key(*key)))
    );
    // An upgrade leaves alone what was filled in.
    for secret in objects.iter().filter(|object| object["kind"] == "Secret") {
        apply(&client, secret, false).await?;
    }
    assert_eq!(secrets.get("podlight-activator-tls").await?.data, certificate.data);
    drop(running);

    let rights = [(0, of_cluster), (1, of_namespace)];
    let rights = rights.iter().flat_map(|(role, rules)| rights_of(*role, rules));
    for (at, (role, right)) in rights.enumerate() {
        let mut rules = [of_cluster["rules"].clone(), of_namespace["rules"].clone()];
        rules[role] = without([of_cluster, of_namespace][role], &[&right]);
        let name = format!("right-{at}");
        let webhook = webhook(&control_plane, &objects, &name, rules).await?;
        let mut pods = 0;
        eventually(&refusal(&right), async || {
            if webhook.admin("/readyz").await?.status == 200 && right.0 == "events" {
                pods += 1;
                create_left(&control_plane, &name, &format!("pod-{pods}")).await?;
            }
            Ok(webhook.log_text()?.contains(&refusal(&right)).then_some(()))
        })
        .await
        .with_context(|| webhook.log_tail())?;
    }
    Ok(())
}

fn rights_of(role: usize, rules: &Value) -> Vec<(usize, Right)> {
    rights(rules).into_iter().map(|right| (role, right)).collect()
}
