//! The replicas behind the headless Service, looked up again and again. A lookup that fails or finds nothing
//! leaves the last answer standing: while every activator is away there is nobody better to try.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
pub(crate) use hickory_resolver::net::NetError;
use metrics::counter;
use reqwest::Url;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::publisher::replicas::Activator;
use crate::retry::{Exponential, Pauses as _};

/// Time between lookups. An answer that may still be cached costs none.
pub(crate) const RESOLVE_EVERY: Duration = Duration::from_secs(5);

/// Names in the resolver's cache: the Service, its search paths, both address families.
const CACHE_SIZE: u64 = 16;

/// A resolver as `/etc/resolv.conf` says, and small.
pub(crate) fn resolver() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    let options = builder.options_mut();
    options.cache_size = CACHE_SIZE;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Auto;
    options.timeout = Duration::from_secs(2);
    options.positive_max_ttl = Some(RESOLVE_EVERY);
    options.negative_max_ttl = Some(RESOLVE_EVERY);
    builder.build()
}

/// Keeps `roots` up to date until nobody follows them. `resolver` is asked for one until it has one.
pub(crate) async fn run(
    activator: Activator,
    roots: watch::Sender<BTreeSet<Url>>,
    resolver: impl Fn() -> Result<TokioResolver, NetError>,
    every: Duration,
) {
    let service = match &activator {
        Activator::Fixed(urls) => {
            roots.send_replace(urls.iter().cloned().collect());
            return roots.closed().await;
        }
        Activator::Service(url) => url,
    };
    let mut failing = false;
    let mut pauses = Exponential::default();
    let mut cached = None;
    loop {
        let found = lookup(service, &mut cached, &resolver).await;
        let known = match &found {
            Ok(addresses) if !addresses.is_empty() => {
                let urls = addresses.iter().filter_map(|&address| activator.replica_at(address)).collect();
                roots.send_if_modified(|roots| {
                    *roots != urls && {
                        *roots = urls;
                        true
                    }
                });
                true
            }
            Ok(_) | Err(_) => false,
        };
        counter!("podlight_sidecar_lookups_total", "result" => if known { "found" } else { "failed" }).increment(1);
        match &found {
            Ok(addresses) if known && failing => {
                info!(replicas = addresses.len(), "the activator's Service resolves again")
            }
            Ok(addresses) => debug!(replicas = addresses.len(), "looked up"),
            Err(error) if !failing => {
                warn!(service = service.host_str(), %error, "the activator's Service does not resolve; known replicas stay");
            }
            Err(error) => debug!(%error, "lookup failed again"),
        }
        failing = !known;
        let never_found = roots.borrow().is_empty();
        let pause = if never_found { pauses.next_pause().min(every) } else { every };
        tokio::select! {
            () = roots.closed() => return,
            () = sleep(pause) => {}
        }
    }
}

async fn lookup(
    service: &Url,
    cached: &mut Option<TokioResolver>,
    resolver: impl Fn() -> Result<TokioResolver, NetError>,
) -> Result<Vec<IpAddr>, NetError> {
    let resolver = match cached {
        Some(resolver) => resolver,
        None => cached.insert(resolver()?),
    };
    let answer = resolver.lookup_ip(service.host_str().unwrap_or_default()).await?;
    Ok(answer.iter().collect())
}

#[cfg(test)]
mod tests;
