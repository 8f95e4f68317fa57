//! What the request path asks of the cluster: to scale targets up, to tell Services' owners of faults, and for the CA
//! certificates that targets name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use metrics::counter;
use tokio::time::{Instant, MissedTickBehavior};

use super::annotations::{Reporter, TargetFault};
use super::route::{Routes, Taker};
use super::upstream::trust::Trust;
use super::wake::{ScaleError, Scaled, Scaler};
use crate::cluster::{Api, Reason};
use crate::table::group::Service;

/// How often targets are looked through for Secrets that are not known yet.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often a known Secret is read again: as often as a kubelet brings a mounted one up to date.
const READ_EVERY: Duration = Duration::from_secs(60);

/// How soon one that cannot be used is read again: who has just made it, or the right to read it, waits for that.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The key of the certificates in a Secret, as cert-manager has it.
const CA: &str = "ca.crt";

impl Scaler for Api {
    fn scale_up<'a>(
        &'a self,
        namespace: &'a str,
        kind: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Scaled, ScaleError>> {
        Box::pin(Self::scale_up(self, namespace, kind, name))
    }
}

impl Reporter for Api {
    fn report(&self, service: &Arc<Service>, faults: &[TargetFault]) {
        for reason in [Reason::InvalidAnnotation, Reason::HostConflict] {
            let of_reason = faults.iter().filter(|fault| self::reason(fault) == reason);
            let message: Vec<String> = of_reason.map(ToString::to_string).collect();
            if !message.is_empty() {
                Self::report(self, &service.key, &service.uid, reason, &message.join("; "));
            }
        }
    }
}

const fn reason(fault: &TargetFault) -> Reason {
    match fault {
        TargetFault::Annotation { .. } | TargetFault::Unusable(_) => Reason::InvalidAnnotation,
        TargetFault::HostTaken { .. } | TargetFault::HostReserved(_) => Reason::HostConflict,
    }
}

/// Reads the Secrets that targets name, and reads them again. What was read last holds until there is something better.
/// Never returns.
pub async fn follow_secrets(api: Api, routes: Routes, trust: Arc<Trust>) {
    let mut due: HashMap<(Arc<str>, Arc<str>), Due> = HashMap::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let wanted = wanted(&routes);
        due.retain(|name, _| {
            let still = wanted.contains(name);
            if !still {
                // There is nothing in it that could be wrong.
                let _ = trust.set_secret(&name.0, &name.1, None);
            }
            still
        });
        let now = Instant::now();
        for name in wanted {
            let before = due.get(&name);
            if before.is_none_or(|due| due.at <= now) {
                let failure = read(&api, &trust, &name.0, &name.1).await.err();
                let told = before.and_then(|due| due.failure.as_ref());
                if let Some(failure) = &failure
                    && told != Some(failure)
                {
                    let (namespace, secret) = (&*name.0, &*name.1);
                    tracing::warn!(namespace, secret, failure, "a Secret with CA certificates cannot be used");
                }
                let at = now + if failure.is_some() { AGAIN_AFTER } else { READ_EVERY };
                due.insert(name, Due { at, failure });
            }
        }
    }
}

/// When to read a Secret next, and why it could not be used the last time.
struct Due {
    at: Instant,
    failure: Option<String>,
}

fn wanted(routes: &Routes) -> HashSet<(Arc<str>, Arc<str>)> {
    let listed = routes.listed();
    let of = listed.iter().filter_map(|listed| match &listed.taker {
        Taker::Target(target) => {
            let secret = target.settings().tls.as_ref()?.ca_secret.clone()?;
            Some((Arc::clone(&target.key().namespace), secret))
        }
        Taker::Nobody(_) => None,
    });
    of.collect()
}

/// Why it cannot be used, where it cannot.
async fn read(api: &Api, trust: &Trust, namespace: &str, name: &str) -> Result<(), String> {
    let failure = match api.secret(namespace, name).await {
        Ok(data) => match data.get(CA) {
            Some(pem) => match trust.set_secret(namespace, name, Some(pem)) {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
            None => format!("there is no {CA} in it"),
        },
        Err(error) => error.to_string(),
    };
    counter!("podlight_proxy_secret_failures_total").increment(1);
    Err(failure)
}
