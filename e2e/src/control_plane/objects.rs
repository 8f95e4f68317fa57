//! Creation and change of objects, as a cluster's users and its kubelets would.

use std::fmt::Debug;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{ControlPlane, PodSpec, PodState, ServiceSpec, SliceSpec};

/// Pods of a batch that are being created at once.
const IN_FLIGHT: usize = 16;

/// The uid of an object that the API server returned.
///
/// # Panics
/// When it has none: it was made here.
pub fn uid(object: &impl Resource) -> String {
    object.meta().uid.clone().expect("an object from the API server has a uid")
}

impl ControlPlane {
    /// Creates a namespace, unless it is there.
    ///
    /// # Errors
    /// When the API server refuses, as in all functions that create, change or delete.
    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let namespace = json!({ "metadata": { "name": name } });
        unless_there(Api::<Namespace>::all(self.client()?), namespace).await
    }

    /// Creates a service account, unless it is there.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let account = json!({ "metadata": { "name": name } });
        unless_there(Api::<ServiceAccount>::namespaced(self.client()?, namespace), account).await
    }

    /// Creates a node, unless it is there. Tokens of its pods then carry its name and uid.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_node(&self, name: &str) -> Result<()> {
        unless_there(Api::<Node>::all(self.client()?), json!({ "metadata": { "name": name } })).await
    }

    /// Creates a service account that may do what an activator does, and no more.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_activator_account(&self, namespace: &str, name: &str) -> Result<()> {
        let rules = json!([
            { "apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"] },
            { "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"] },
            { "apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"] },
            { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
            { "apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"] },
            { "nonResourceURLs": ["/openid/v1/jwks", "/.well-known/openid-configuration"], "verbs": ["get"] },
        ]);
        self.create_service_account(namespace, name).await?;
        self.grant(namespace, name, &format!("{namespace}-{name}-activator"), rules).await
    }

    /// Lets a service account scale Deployments and StatefulSets of a namespace, as a Role beside the activator's would.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn allow_scaling(&self, namespace: &str, account_namespace: &str, account: &str) -> Result<()> {
        let resources = ["deployments/scale", "statefulsets/scale", "replicasets/scale"];
        let rules = json!([{ "apiGroups": ["apps"], "resources": resources, "verbs": ["get", "patch", "update"] }]);
        self.bind_role(namespace, (account_namespace, account), "podlight-scale", rules).await
    }

    /// Creates a role of the service account's own namespace with `rules` and binds it to the account.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn grant_in(&self, namespace: &str, service_account: &str, role: &str, rules: Value) -> Result<()> {
        self.bind_role(namespace, (namespace, service_account), role, rules).await
    }

    async fn bind_role(&self, namespace: &str, account: (&str, &str), role: &str, rules: Value) -> Result<()> {
        let client = self.client()?;
        let metadata = json!({ "name": role, "namespace": namespace });
        let binding = json!({
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "namespace": account.0, "name": account.1 }],
        });
        let role = json!({ "metadata": metadata, "rules": rules });
        unless_there(Api::<Role>::namespaced(client.clone(), namespace), role).await?;
        unless_there(Api::<RoleBinding>::namespaced(client, namespace), binding).await
    }

    /// Lets a service account `get` a non-resource URL, such as `/v1/targets` or `/v1/*`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn allow_url(&self, namespace: &str, service_account: &str, url: &str) -> Result<()> {
        let role = format!("{namespace}-{service_account}-get{}", url.replace('/', "-").replace('*', "all"));
        let rules = json!([{ "nonResourceURLs": [url], "verbs": ["get"] }]);
        self.grant(namespace, service_account, &role, rules).await
    }

    /// Creates a pod, with a status if one is given, and returns it as the API server has it then.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_pod(&self, spec: PodSpec, state: Option<PodState>) -> Result<Pod> {
        create_pod(self.client()?, spec, state).await
    }

    /// Creates many pods, 16 at a time, and returns them in order.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub async fn create_pods(&self, pods: Vec<(PodSpec, Option<PodState>)>) -> Result<Vec<Pod>> {
        let client = self.client()?;
        let creations = pods.into_iter().map(|(spec, state)| create_pod(client.clone(), spec, state));
        stream::iter(creations).buffered(IN_FLIGHT).try_collect().await
    }

    /// Reports a pod's status, as its kubelet would.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn set_pod_state(&self, namespace: &str, name: &str, state: &PodState) -> Result<Pod> {
        patch_status(&Api::namespaced(self.client()?, namespace), name, state).await
    }

    /// Sets (or with `None` removes) a label of a pod.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn set_pod_label(&self, namespace: &str, name: &str, key: &str, value: Option<&str>) -> Result<Pod> {
        let patch = json!({ "metadata": { "labels": { key: value } } });
        let pods = Api::<Pod>::namespaced(self.client()?, namespace);
        Ok(pods.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// Deletes a pod: it terminates for `grace` seconds, and as no kubelet ends that, until it is deleted with 0, which
    /// removes it at once.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_pod(&self, namespace: &str, name: &str, grace: u32) -> Result<()> {
        let parameters = DeleteParams::default().grace_period(grace);
        Api::<Pod>::namespaced(self.client()?, namespace).delete(name, &parameters).await?;
        Ok(())
    }

    /// Creates a Service.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_service(&self, spec: ServiceSpec) -> Result<Service> {
        self.create(spec.0).await
    }

    /// Creates an EndpointSlice, as for a Service without selector.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_endpoint_slice(&self, spec: SliceSpec) -> Result<EndpointSlice> {
        self.create(spec.0).await
    }

    /// Creates any other namespaced object, in the namespace that it names.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create<K>(&self, object: K) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
        K::DynamicType: Default,
    {
        let namespace = object.meta().namespace.clone().context("the object names no namespace")?;
        Ok(Api::namespaced(self.client()?, &namespace).create(&PostParams::default(), &object).await?)
    }

    /// Creates a cluster role with `rules` and binds the service account to it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn grant(&self, namespace: &str, service_account: &str, role: &str, rules: Value) -> Result<()> {
        let client = self.client()?;
        let metadata = json!({ "name": role });
        let binding = json!({
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "namespace": namespace, "name": service_account }],
        });
        unless_there(Api::<ClusterRole>::all(client.clone()), json!({ "metadata": metadata, "rules": rules })).await?;
        unless_there(Api::<ClusterRoleBinding>::all(client), binding).await
    }
}

async fn create_pod(client: Client, spec: PodSpec, state: Option<PodState>) -> Result<Pod> {
    let pod = spec.build();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let pods = Api::<Pod>::namespaced(client, &namespace);
    let created = pods.create(&PostParams::default(), &pod).await?;
    match (state, &pod.metadata.name) {
        (Some(state), Some(name)) => patch_status(&pods, name, &state).await,
        _ => Ok(created),
    }
}

async fn patch_status(pods: &Api<Pod>, name: &str, state: &PodState) -> Result<Pod> {
    Ok(pods.patch_status(name, &PatchParams::default(), &Patch::Merge(state.merge_patch())).await?)
}

/// Creates the object that `value` describes; one that exists is left as it is.
async fn unless_there<K>(api: Api<K>, value: Value) -> Result<()>
where
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    let object = serde_json::from_value(value)?;
    match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => Ok(other.map(drop)?),
    }
}
