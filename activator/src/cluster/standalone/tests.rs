use std::path::Path;

use podlight_proto::AUDIENCE;
use tempfile::TempDir;
use tokio::sync::watch as signal;

use super::*;
use crate::cluster::ScaleError;
use crate::cluster::token::{DEFAULT_ISSUER, MintRequest};
use crate::table::group::GroupKey;
use crate::table::snapshot::Groups;
use crate::table::{ListEpoch, Table, owner};

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec:
  serviceAccountName: web
  containers: [{name: app, ports: [{name: http, containerPort: 8080}]}]
";

struct Running {
    dir: TempDir,
    api: Api,
    pods: Pods,
    health: Health,
    groups: Groups,
    key: Arc<IssuerKey>,
    stop: signal::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    fn start(file: &str, text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), file, text);
        let (table, groups, _feed, _owner) = owner::spawn(Table::default(), owner::Clock::start(), 16);
        let (config, stop) = config(dir.path());
        let key = Arc::clone(&config.issuer_key);
        let (api, pods, health, tasks) = spawn_standalone(config, table);
        Self { dir, api, pods, health, groups, key, stop, tasks }
    }

    fn write(&self, file: &str, text: &str) {
        write(self.dir.path(), file, text);
    }

    fn token(&self, service_account: &str, pod_name: &str) -> String {
        let request = MintRequest {
            namespace: "shop".into(),
            service_account: service_account.into(),
            pod_name: pod_name.into(),
            pod_uid: pod_uid("shop", pod_name),
            audience: AUDIENCE.into(),
            seconds: 600,
            issuer: DEFAULT_ISSUER.into(),
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        self.key.mint(&request, now.as_secs()).unwrap()
    }

    /// Waits until the table shows this many endpoints of the Service `web`.
    async fn endpoints(&self, count: usize) {
        let key = GroupKey::new("shop", "web");
        until(|| self.groups.get(&key.namespace, &key.service).is_some_and(|g| g.endpoints().count() == count)).await;
    }
}

fn config(dir: &Path) -> (StandaloneConfig, signal::Sender<bool>) {
    let (stop, shutdown) = signal::channel(false);
    let config = StandaloneConfig {
        path: dir.to_owned(),
        issuer_key: Arc::new(IssuerKey::load_or_create(&dir.join("issuer.pem")).unwrap()),
        issuer: DEFAULT_ISSUER.to_owned(),
        revision_labels: RevisionLabels::default(),
        shutdown,
    };
    (config, stop)
}

/// Puts a file in place at once, as an editor does.
fn write(dir: &Path, file: &str, text: &str) {
    let new = dir.join(".new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, dir.join(file)).unwrap();
}

async fn until(holds: impl Fn() -> bool) {
    let poll = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), poll).await.expect("the condition comes to hold");
}

fn pod(name: &str) -> String {
    format!("---\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web}}}}\n")
}

#[tokio::test]
async fn files_are_followed_as_they_change() {
    let running = Running::start("web.yaml", WEB);
    running.health.wait_synced().await;
    assert!(running.health.reachable());
    running.endpoints(1).await;
    let seen = running.pods.get(&pod_uid("shop", "web-1")).unwrap();
    assert_eq!((&*seen.service_account, seen.resource_version, seen.addresses.len()), ("web", 1, 0));

    running.write("more.yaml", &pod("web-2"));
    running.endpoints(2).await;
    running.write("web.yaml", &WEB.replace("metadata: {name: web-1", "metadata: {annotations: {a: b}, name: web-1"));
    until(|| running.pods.get(&pod_uid("shop", "web-1")).is_some_and(|p| p.resource_version == 2)).await;
    assert_eq!(running.pods.get(&pod_uid("shop", "web-2")).unwrap().resource_version, 1, "it has not changed");

    std::fs::remove_file(running.dir.path().join("more.yaml")).unwrap();
    running.endpoints(1).await;
    assert!(running.pods.get(&pod_uid("shop", "web-2")).is_none());

    running.stop.send(true).unwrap();
    for task in running.tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_broken_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "web.yaml", WEB);
    let (table, _groups, _feed, _owner) = owner::spawn(Table::default(), owner::Clock::start(), 16);
    let (config, _stop) = config(dir.path());
    let (mut follower, pods, health) = Follower::new(config, table);
    follower.look().await;
    assert_eq!((pods.len(), pods.list_epoch(), health.synced()), (1, ListEpoch(1), true));

    write(dir.path(), "broken.yaml", "kind: [Pod");
    write(dir.path(), "more.yaml", &pod("web-2"));
    follower.look().await;
    assert!(follower.failing);
    assert_eq!((pods.len(), pods.list_epoch()), (1, ListEpoch(1)));
    assert!(health.synced() && health.reachable());

    std::fs::remove_file(dir.path().join("broken.yaml")).unwrap();
    follower.look().await;
    assert!(!follower.failing);
    assert_eq!((pods.len(), pods.list_epoch()), (2, ListEpoch(2)));
    follower.look().await;
    assert_eq!(pods.list_epoch(), ListEpoch(2), "nothing has changed");
}

#[tokio::test]
async fn tokens_are_reviewed_against_the_files() {
    let running = Running::start("web.yaml", WEB);
    running.health.wait_synced().await;
    let reviewed = running.api.review_token(&running.token("web", "web-1")).await.unwrap();
    assert_eq!((reviewed.pod_name.as_deref(), reviewed.service_account.as_str()), (Some("web-1"), "web"));
    assert!(running.api.authorize(&reviewed, "/v1/targets").await.unwrap());
    running.api.review_token(&running.token("default", "web-1")).await.unwrap();
    for (account, pod) in [("web", "web-9"), ("nobody", "web-1")] {
        let answer = running.api.review_token(&running.token(account, pod)).await;
        assert!(matches!(answer, Err(ApiError::Rejected(_))), "{account} {pod}");
    }
    assert_eq!(running.api.fetch_jwks().await.unwrap(), running.key.jwks());
    assert_eq!(running.api.fetch_issuer().await.unwrap().as_deref(), Some(DEFAULT_ISSUER));
    let fetched = running.api.fetch_pod("shop", "web-1").await.unwrap().unwrap();
    assert_eq!(fetched.pod.uid(), &pod_uid("shop", "web-1"));
    assert!(running.api.fetch_pod("shop", "web-9").await.unwrap().is_none());
}

#[tokio::test]
async fn secrets_come_from_the_files_and_nothing_is_scaled() {
    let secret = "
kind: Secret
metadata: {name: ca, namespace: shop}
data: {ca.crt: UEVN}
stringData: {note: text}
";
    let running = Running::start("web.yaml", &format!("{WEB}---{secret}"));
    running.health.wait_synced().await;
    let data = running.api.secret("shop", "ca").await.unwrap();
    assert_eq!((&*data["ca.crt"], &*data["note"]), (&b"PEM"[..], &b"text"[..]));
    assert!(matches!(running.api.secret("shop", "other").await, Err(ApiError::Rejected(_))));
    let scaled = running.api.scale_up("shop", "Deployment", "web").await;
    assert_eq!(scaled, Err(ScaleError::Final("standalone mode scales nothing".to_owned())));
}

fn load(file: &str, text: &str) -> Result<Manifests, manifests::LoadError> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), file, text);
    manifests::scan(&dir.path().join(file), None).manifests.unwrap()
}

#[test]
fn lists_and_json_are_read_and_names_completed() {
    let list = r#"{"kind": "List", "items": [
        {"kind": "Pod", "metadata": {"name": "a"}},
        {"kind": "PodList", "items": [{"metadata": {"name": "b", "namespace": "x", "uid": "u"}}]},
        {"kind": "ConfigMap", "metadata": {"name": "c"}}
    ]}"#;
    for file in ["list.json", "list.yaml"] {
        let read = load(file, list).unwrap();
        let names: Vec<_> = read.pods.keys().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
        assert_eq!(names, ["default/a", "x/b"]);
        let uids: Vec<_> = read.pods.values().map(|p| p.metadata.uid.clone().unwrap()).collect();
        assert_eq!(uids, [pod_uid("default", "a").to_string(), "u".to_owned()]);
    }
}

#[test]
fn many_pods_in_one_file_are_not_too_many() {
    let text: String = (0..3000).map(|n| pod(&format!("web-{n}"))).collect();
    assert_eq!(load("many.yaml", &text).unwrap().pods.len(), 3000);
}

#[test]
fn what_cannot_be_used_is_said_to_be_so() {
    use manifests::LoadError;
    assert!(matches!(load("a.yaml", "\n"), Err(LoadError::Empty { .. })));
    assert!(matches!(load("a.json", "{"), Err(LoadError::Json { .. })));
    assert!(matches!(load("a.yaml", "metadata: {name: a}"), Err(LoadError::Nameless { .. })));
    assert!(matches!(load("a.yaml", "kind: Pod\nmetadata: {}"), Err(LoadError::Nameless { .. })));
    assert!(matches!(load("a.yaml", "kind: Pod\nspec: 5"), Err(LoadError::Object { .. })));
    assert!(matches!(manifests::scan(Path::new("/nonexistent"), None).manifests, Some(Err(LoadError::Read { .. }))));
}

#[test]
fn a_second_look_at_the_same_files_finds_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &pod("a"));
    let first = manifests::scan(dir.path(), None);
    let second = manifests::scan(dir.path(), Some(first.fingerprint));
    assert!(second.manifests.is_none());
    write(dir.path(), "a.yaml", &pod("b"));
    assert!(manifests::scan(dir.path(), Some(second.fingerprint)).manifests.is_some());
}
