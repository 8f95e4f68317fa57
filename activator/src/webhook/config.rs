//! Flags of `podlight-activator webhook`, checked: every fault is told at once, before anything is opened or asked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args as ArgGroup;

use super::store::ServerSecret;
use crate::config::{Faults, LogArgs, LogConfig, dns_name_or_address, parsed, span};
use crate::inject::{InjectionArgs, Settings};

/// Where admission reviews are taken. Not 443: no capability is needed to bind it.
const LISTEN: &str = "0.0.0.0:8444";

/// Metrics and probes, as the activator's.
const ADMIN_LISTEN: &str = "0.0.0.0:9401";

/// The Services that the servers' certificates are for.
const WEBHOOK_SERVICE: &str = "podlight-webhook";
const ACTIVATOR_SERVICES: [&str; 2] = ["podlight-activator", "podlight-activator-events"];

/// API servers hold connections and notice a webhook that goes; a few seconds bridge those that do not.
const SHUTDOWN_DELAY: &str = "5s";

/// An API server gives a webhook 5 s.
const SHUTDOWN_GRACE: &str = "10s";

/// Answers admission reviews over HTTPS: adds the sidecar to pods. Makes and keeps the certificates for itself and for
/// the activator, tells the API server its CA, and hands the CA to the namespaces of injected pods.
#[derive(Debug, ArgGroup)]
pub struct WebhookArgs {
    /// Where admission reviews are taken, as POST /inject.
    #[arg(long, env = "PODLIGHT_LISTEN", default_value = LISTEN)]
    listen: String,
    /// Where metrics and probes are served, as plain HTTP.
    #[arg(long, env = "PODLIGHT_ADMIN_LISTEN", default_value = ADMIN_LISTEN)]
    admin_listen: String,
    /// Kubeconfig. Default: KUBECONFIG, ~/.kube/config or the pod's ServiceAccount, the first that is there.
    #[arg(long, env = "PODLIGHT_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, env = "PODLIGHT_CONTEXT")]
    context: Option<String>,
    /// The namespace of this process and its Secrets. It is never injected. Default: the activator's.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// The MutatingWebhookConfiguration that is told the CA; empty for none.
    #[arg(long, env = "PODLIGHT_WEBHOOK_CONFIGURATION", default_value = "podlight")]
    webhook_configuration: String,
    /// A DNS name or IP address that the API server calls the webhook; repeat for more.
    /// Default: `podlight-webhook.<namespace>.svc`.
    #[arg(long, env = "PODLIGHT_WEBHOOK_NAMES", value_delimiter = ',')]
    webhook_name: Vec<String>,
    /// A DNS name or IP address that clients call the activator; repeat for more. Default: the Services podlight-activator
    /// and podlight-activator-events, and the names of the latter's replicas.
    #[arg(long, env = "PODLIGHT_ACTIVATOR_NAMES", value_delimiter = ',')]
    activator_name: Vec<String>,
    /// The Secret of the CA's keys.
    #[arg(long, env = "PODLIGHT_CA_SECRET", default_value = "podlight-ca")]
    ca_secret: String,
    /// The Secret of the webhook's certificate.
    #[arg(long, env = "PODLIGHT_WEBHOOK_SECRET", default_value = "podlight-webhook-tls")]
    webhook_secret: String,
    /// The Secret of the activator's certificate; empty for none.
    #[arg(long, env = "PODLIGHT_ACTIVATOR_SECRET", default_value = "podlight-activator-tls")]
    activator_secret: String,
    /// The webhook's certificate chain as PEM, when somebody else sees to certificates and to the
    /// MutatingWebhookConfiguration; read again when it changes, as the two below.
    #[arg(long, env = "PODLIGHT_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Its private key as PEM.
    #[arg(long, env = "PODLIGHT_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// The CA that is handed to namespaces then, as PEM: that of the activator's certificate.
    #[arg(long, env = "PODLIGHT_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// How long to go on serving after SIGTERM, not ready any more, until others have noticed.
    #[arg(long, env = "PODLIGHT_SHUTDOWN_DELAY", default_value = SHUTDOWN_DELAY)]
    shutdown_delay: String,
    /// How long reviews under way may still take from then on.
    #[arg(long, env = "PODLIGHT_SHUTDOWN_GRACE", default_value = SHUTDOWN_GRACE)]
    shutdown_grace: String,
    #[command(flatten)]
    injection: InjectionArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificates {
    /// They are made here and kept in Secrets.
    Made {
        /// The Secret of the CA's keys.
        ca_secret: String,
        /// The Secrets of certificates, the webhook's own first.
        servers: Vec<ServerSecret>,
        /// The MutatingWebhookConfiguration that is told the CA.
        webhook_configuration: Option<String>,
    },
    /// Somebody else sees to them.
    Files(CertificateFiles),
}

/// Files with a certificate of somebody else's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA to hand out.
    pub ca: PathBuf,
}

/// Settings of the webhook, checked.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// Where admission reviews are taken.
    pub listen: SocketAddr,
    /// Where metrics and probes are served.
    pub admin_listen: SocketAddr,
    /// Kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// Its context.
    pub context: Option<String>,
    /// The namespace of this process and its Secrets.
    pub namespace: String,
    /// Where certificates come from.
    pub certificates: Certificates,
    /// How long to go on serving after the signal.
    pub shutdown_delay: Duration,
    /// How long reviews under way may still take from then on.
    pub shutdown_grace: Duration,
    /// What injected sidecars are like.
    pub injection: Settings,
    /// The log.
    pub log: LogConfig,
}

impl TryFrom<WebhookArgs> for WebhookConfig {
    type Error = Faults;

    fn try_from(args: WebhookArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let config = args.check(&mut faults);
        faults.or(config)
    }
}

impl WebhookArgs {
    fn check(self, faults: &mut Faults) -> Option<WebhookConfig> {
        let listen = faults.note("listen", parsed(&self.listen, "must be <ip>:<port>"));
        let admin_listen = faults.note("admin-listen", parsed(&self.admin_listen, "must be <ip>:<port>"));
        let shutdown_delay = faults.note("shutdown-delay", span(&self.shutdown_delay));
        let shutdown_grace = faults.note("shutdown-grace", span(&self.shutdown_grace));
        let log = self.log.check(faults);
        let injection = self.injection.check(faults);
        let mut webhook_names = faults.each("webhook-name", &self.webhook_name, dns_name_or_address);
        let mut activator_names = faults.each("activator-name", &self.activator_name, dns_name_or_address);
        for (flag, name, optional) in [
            ("namespace", self.namespace.as_deref().unwrap_or("x"), false),
            ("webhook-configuration", &self.webhook_configuration, true),
            ("ca-secret", &self.ca_secret, false),
            ("webhook-secret", &self.webhook_secret, false),
            ("activator-secret", &self.activator_secret, true),
        ] {
            if !(crate::cluster::api::is_object_name(name) || optional && name.is_empty()) {
                faults.add(flag, format_args!("{name:?} must be an object's name"));
            }
        }
        let files = match (&self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(certificate), Some(key), Some(ca)) => {
                Some(CertificateFiles { certificate: certificate.clone(), key: key.clone(), ca: ca.clone() })
            }
            (None, None, None) => None,
            _ => return faults.note("tls-cert", Err("needs --tls-key and --tls-ca, and they need it")),
        };
        let injection = injection?;
        let namespace = self.namespace.unwrap_or_else(|| injection.activator_namespace.clone());
        if webhook_names.is_empty() {
            webhook_names.push(format!("{WEBHOOK_SERVICE}.{namespace}.svc"));
        }
        if activator_names.is_empty() {
            let services = ACTIVATOR_SERVICES.map(|service| format!("{service}.{}.svc", injection.activator_namespace));
            let replicas = format!("*.{}", services[1]);
            activator_names.extend(services.into_iter().chain([replicas]));
        }
        let mut servers = vec![ServerSecret { secret: self.webhook_secret, names: webhook_names }];
        if !self.activator_secret.is_empty() {
            servers.push(ServerSecret { secret: self.activator_secret, names: activator_names });
        }
        let different = servers.iter().all(|server| server.secret != self.ca_secret)
            && servers.first().map(|s| &s.secret) != servers.get(1).map(|s| &s.secret);
        if !different {
            faults
                .add("ca-secret", "must differ from --webhook-secret and --activator-secret, and they from each other");
        }
        let certificates = files.map_or_else(
            || Certificates::Made {
                ca_secret: self.ca_secret,
                servers,
                webhook_configuration: Some(self.webhook_configuration).filter(|name| !name.is_empty()),
            },
            Certificates::Files,
        );
        Some(WebhookConfig {
            listen: listen?,
            admin_listen: admin_listen?,
            kubeconfig: self.kubeconfig,
            context: self.context,
            namespace,
            certificates,
            shutdown_delay: shutdown_delay?,
            shutdown_grace: shutdown_grace?,
            injection,
            log: log?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        webhook: WebhookArgs,
    }

    fn read(flags: &[&str]) -> Result<WebhookConfig, Faults> {
        let flags = Flags::try_parse_from(["x"].iter().chain(flags)).expect("flags");
        WebhookConfig::try_from(flags.webhook)
    }

    #[test]
    fn the_defaults_fit_together() {
        let config = read(&["--activator-namespace=lights"]).expect("a configuration");
        assert_eq!(config.namespace, "lights");
        let Certificates::Made { servers, webhook_configuration, .. } = config.certificates else { panic!("made") };
        assert_eq!(webhook_configuration.as_deref(), Some("podlight"));
        let names: Vec<_> = servers.iter().map(|server| server.names.clone()).collect();
        let activator = [
            "podlight-activator.lights.svc",
            "podlight-activator-events.lights.svc",
            "*.podlight-activator-events.lights.svc",
        ];
        assert_eq!(names, [vec!["podlight-webhook.lights.svc"], activator.to_vec()]);
        let alone =
            read(&["--activator-secret=", "--webhook-configuration=", "--namespace=x"]).expect("a configuration");
        assert_eq!(alone.namespace, "x");
        let Certificates::Made { servers, webhook_configuration, .. } = alone.certificates else { panic!("made") };
        assert_eq!((servers.len(), webhook_configuration), (1, None));
        let files = read(&["--tls-cert=a", "--tls-key=b", "--tls-ca=c"]).expect("a configuration").certificates;
        assert!(matches!(files, Certificates::Files(_)));
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let flags = [
            "--listen=x",
            "--admin-listen=x",
            "--shutdown-delay=x",
            "--shutdown-grace=x",
            "--log-format=x",
            "--webhook-name=a b",
            "--activator-name=a b",
            "--namespace=X",
            "--ca-secret=X",
            "--webhook-secret=X",
            "--sidecar-limits=x",
        ];
        let told = read(&flags).expect_err("faults").to_string();
        for flag in flags {
            let flag = flag.split_once('=').expect("a flag").0;
            assert!(told.contains(&format!("{flag}:")), "{flag} in {told}");
        }
        assert!(read(&["--webhook-secret=a", "--activator-secret=a"]).is_err());
        assert!(read(&["--tls-cert=a", "--tls-key=b"]).is_err());
    }
}
