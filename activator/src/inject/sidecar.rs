//! The sidecar's container and its volumes, as they are added to a pod.

use k8s_openapi::api::core::v1::PodSpec;
use podlight_proto::AUDIENCE;
use serde_json::{Map, Value, json};

use super::settings::Settings;
use super::{CONTAINER, IDENTITY_VOLUME, RUN_VOLUME};

/// Where the sidecar looks for token and CA.
const IDENTITY_PATH: &str = "/var/run/secrets/podlight";

/// Where the admin socket is, in pods that share their node's network.
const RUN_PATH: &str = "/run/podlight";

/// The sidecar's binary in its image, which has no shell and no search path.
const BINARY: &str = "/podlight-sidecar";

/// The uid and gid of the sidecar's image.
const USER: u32 = 65_532;

/// The sidecar's admin port, unless a container of the pod declares it.
const ADMIN_PORT: u16 = 9402;

/// Lifetime of the projected token: the shortest that every cluster grants is 600 s; kubelets renew it at 80 %.
const TOKEN_SECONDS: u32 = 3600;

/// Looks of the kubelet at a sidecar that starts before it is started anew, one a second.
const STARTUP_LOOKS: u32 = 60;

/// What a sidecar is made from.
pub(super) struct Sidecar<'a> {
    pub(super) settings: &'a Settings,
    pub(super) spec: &'a PodSpec,
    pub(super) probes: &'a [String],
    /// The pod's label that tells its revision.
    pub(super) revision: Option<&'a str>,
}

impl Sidecar<'_> {
    pub(super) fn container(&self) -> Value {
        let Settings { image, pull_policy, requests, limits, startup_probe, .. } = self.settings;
        let mut container = json!({
            "name": CONTAINER,
            "image": image,
            "restartPolicy": "Always",
            "args": self.args(),
            "env": self.env(),
            // The drain is told while the containers still run; nothing waits for it longer than for them.
            "lifecycle": { "preStop": { "exec": { "command": [BINARY, "drain", "--hold=0s"] } } },
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": self.mounts(),
        });
        let fields = container.as_object_mut().expect("made as an object");
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        if let Some(policy) = pull_policy {
            set("imagePullPolicy", json!(policy));
        }
        if let Some(port) = self.admin_port() {
            set("ports", json!([{ "name": "podlight-admin", "containerPort": port, "protocol": "TCP" }]));
        }
        let mut resources = Map::new();
        for (kind, values) in [("requests", requests), ("limits", limits)] {
            if !values.is_empty() {
                resources.insert(kind.to_owned(), json!(values));
            }
        }
        set("resources", Value::Object(resources));
        if *startup_probe {
            // It asks the sidecar alone: neither the activator nor the app has to be there.
            let looks = json!({ "exec": { "command": [BINARY, "check"] }, "periodSeconds": 1, "failureThreshold": STARTUP_LOOKS });
            set("startupProbe", looks);
        }
        container
    }

    pub(super) fn volumes(&self) -> Vec<Value> {
        let identity = json!({
            "name": IDENTITY_VOLUME,
            "projected": { "sources": [
                { "serviceAccountToken": { "audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                // Optional: a pod does not wait for a CA that nobody has handed out yet.
                { "configMap": {
                    "name": self.settings.ca_config_map,
                    "items": [{ "key": "ca.crt", "path": "ca.crt" }],
                    "optional": true,
                } },
            ] },
        });
        let run = json!({ "name": RUN_VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } });
        if self.on_host_network() { vec![identity, run] } else { vec![identity] }
    }

    fn args(&self) -> Vec<String> {
        // Kubernetes puts variables in place of `$(NAME)` in arguments.
        let probes = self.probes.iter().map(|probe| format!("--probe={}", probe.replace("$(", "$$(")));
        let activator = match &self.settings.activator_service {
            Some(url) => format!("--activator-service={url}"),
            None => format!("--activator-namespace={}", self.settings.activator_namespace),
        };
        probes.chain([activator]).collect()
    }

    /// `drain` and `check` run in the same environment, so that what moves the admin port moves it for them too.
    fn env(&self) -> Vec<Value> {
        let field =
            |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
        let mut env = vec![
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_NAME", "metadata.name"),
            field("POD_UID", "metadata.uid"),
            field("POD_IPS", "status.podIPs"),
            field("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
            field("NODE_NAME", "spec.nodeName"),
        ];
        if let Some(label) = self.revision {
            env.push(field("PODLIGHT_REVISION", &format!("metadata.labels['{label}']")));
        }
        match self.admin_port() {
            Some(ADMIN_PORT) => {}
            Some(port) => env.push(json!({ "name": "PODLIGHT_ADMIN_LISTEN", "value": format!("0.0.0.0:{port}") })),
            None => {
                env.push(json!({ "name": "PODLIGHT_ADMIN_LISTEN", "value": "127.0.0.1:0" }));
                env.push(json!({ "name": "PODLIGHT_ADMIN_SOCKET", "value": format!("{RUN_PATH}/admin.sock") }));
            }
        }
        env
    }

    fn mounts(&self) -> Vec<Value> {
        let identity = json!({ "name": IDENTITY_VOLUME, "mountPath": IDENTITY_PATH, "readOnly": true });
        let run = json!({ "name": RUN_VOLUME, "mountPath": RUN_PATH });
        if self.on_host_network() { vec![identity, run] } else { vec![identity] }
    }

    /// The first port from 9402 on that no container declares. None on the node's network, where another pod may have it.
    fn admin_port(&self) -> Option<u16> {
        if self.on_host_network() {
            return None;
        }
        let all = self.spec.init_containers.iter().flatten().chain(&self.spec.containers);
        let declared: Vec<i32> = all.flat_map(|c| c.ports.iter().flatten()).map(|port| port.container_port).collect();
        (ADMIN_PORT..).find(|port| !declared.contains(&i32::from(*port)))
    }

    fn on_host_network(&self) -> bool {
        self.spec.host_network == Some(true)
    }
}
