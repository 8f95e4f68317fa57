//! Who has which host. A Service has its own name before anybody who claims it by annotation; among those the older
//! comes first. The one writer of the table that [`super::Routes`] read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;

use super::{GroupTaker, HostPattern, Listed, Routes, Table, Taker};
use crate::proxy::annotations::TargetFault;
use crate::table::group::{GroupKey, Service};

/// One Service's claim to a host; the least has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    by_annotation: bool,
    created_seconds: u64,
    key: GroupKey,
}

#[derive(Debug)]
struct Claimant {
    service: Arc<Service>,
    taker: Taker,
    claims: BTreeMap<HostPattern, Claim>,
    faults: Vec<TargetFault>,
}

/// The routes as they are being written. Readers see nothing before [`RouteTable::publish`].
#[derive(Debug)]
pub struct RouteTable {
    cluster_domain: Arc<str>,
    claimants: HashMap<GroupKey, Claimant>,
    claims: HashMap<HostPattern, BTreeSet<Claim>>,
    table: Table,
    changed: bool,
    routes: Routes,
}

impl RouteTable {
    /// No routes. `cluster_domain` as in `cluster.local`.
    pub fn new(cluster_domain: &str) -> Self {
        Self {
            cluster_domain: cluster_domain.trim_matches('.').to_ascii_lowercase().into(),
            claimants: HashMap::new(),
            claims: HashMap::new(),
            table: Table::default(),
            changed: false,
            routes: Routes::default(),
        }
    }

    /// What readers have.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Shows readers what was written. Returns without effect when nothing was.
    pub fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.routes.table.store(Arc::new(self.table.clone()));
        }
    }

    /// Puts a Service in or replaces it. Returns the Services whose hosts or faults may be others now, it among them.
    pub fn put(
        &mut self,
        service: &Arc<Service>,
        taker: Taker,
        hosts: &[HostPattern],
        mut faults: Vec<TargetFault>,
    ) -> BTreeSet<GroupKey> {
        let claims = self.claims_of(service, hosts, &mut faults);
        let touched = self.withdraw(&service.key);
        let claimant = Claimant { service: Arc::clone(service), taker, claims, faults };
        for (host, claim) in &claimant.claims {
            self.claims.entry(host.clone()).or_default().insert(claim.clone());
        }
        let touched = touched.into_iter().chain(claimant.claims.keys().cloned()).collect();
        self.claimants.insert(service.key.clone(), claimant);
        self.settle(&service.key, touched)
    }

    /// Takes a Service out. Returns the Services whose hosts or faults may be others now.
    pub fn remove(&mut self, key: &GroupKey) -> BTreeSet<GroupKey> {
        let touched = self.withdraw(key).into_iter().collect();
        self.settle(key, touched)
    }

    /// A Service as readers will see it.
    pub fn get(&self, key: &GroupKey) -> Option<&Arc<Listed>> {
        self.table.listed.get(key)
    }

    fn claims_of(
        &self,
        service: &Service,
        hosts: &[HostPattern],
        faults: &mut Vec<TargetFault>,
    ) -> BTreeMap<HostPattern, Claim> {
        let GroupKey { namespace, service: name } = &service.key;
        let domain = &self.cluster_domain;
        let own = [
            format!("{name}.{namespace}"),
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}.svc.{domain}"),
        ];
        let claim =
            |by_annotation| Claim { by_annotation, created_seconds: service.created_seconds, key: service.key.clone() };
        let own = own.map(|host| (HostPattern::Exact(host.into()), claim(false)));
        let mut claims = BTreeMap::from(own);
        for host in hosts {
            if !claims.contains_key(host) && self.is_reserved(host) {
                faults.push(TargetFault::HostReserved(host.clone()));
            } else {
                claims.entry(host.clone()).or_insert_with(|| claim(true));
            }
        }
        claims
    }

    /// Names that only the Service itself has, whether or not it opted in: nobody answers in another's name.
    fn is_reserved(&self, host: &HostPattern) -> bool {
        let (HostPattern::Exact(name) | HostPattern::Below(name)) = host;
        let is_or_below =
            |suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        is_or_below("svc") || is_or_below(&self.cluster_domain)
    }

    /// Takes a Service's claims back. Returns the hosts that they were to.
    fn withdraw(&mut self, key: &GroupKey) -> Vec<HostPattern> {
        let Some(claimant) = self.claimants.remove(key) else { return Vec::new() };
        for (host, claim) in &claimant.claims {
            if let Some(claims) = self.claims.get_mut(host) {
                claims.remove(claim);
                if claims.is_empty() {
                    self.claims.remove(host);
                }
            }
        }
        claimant.claims.into_keys().collect()
    }

    /// Decides who has the hosts touched, and brings all whom that concerns up to date.
    fn settle(&mut self, key: &GroupKey, touched: BTreeSet<HostPattern>) -> BTreeSet<GroupKey> {
        let mut concerned = BTreeSet::from([key.clone()]);
        for host in touched {
            let claims = self.claims.get(&host);
            concerned.extend(claims.into_iter().flatten().map(|claim| claim.key.clone()));
            let owner = claims.and_then(BTreeSet::first).and_then(|claim| self.claimants.get(&claim.key));
            let taker = owner.map(|o| GroupTaker { key: o.service.key.clone(), taker: o.taker.clone() });
            let (map, name) = match &host {
                HostPattern::Exact(name) => (&mut self.table.exact, name),
                HostPattern::Below(suffix) => (&mut self.table.below, suffix),
            };
            match taker {
                Some(taker) => drop(map.insert(Arc::clone(name), taker)),
                None => drop(map.remove(name)),
            }
        }
        for key in &concerned {
            match self.list(key) {
                Some(listed) => drop(self.table.listed.insert(key.clone(), Arc::new(listed))),
                None => drop(self.table.listed.remove(key)),
            }
        }
        self.changed = true;
        concerned
    }

    fn list(&self, key: &GroupKey) -> Option<Listed> {
        let Claimant { service, taker, claims, faults } = self.claimants.get(key)?;
        let (mut hosts, mut faults) = (Vec::new(), faults.clone());
        for host in claims.keys() {
            match self.claims.get(host).and_then(BTreeSet::first) {
                Some(first) if first.key != *key => {
                    faults.push(TargetFault::HostTaken { host: host.clone(), by: first.key.clone() });
                }
                Some(_) | None => hosts.push(host.clone()),
            }
        }
        if let Taker::Nobody(why) = taker {
            faults.push(TargetFault::Unusable(Arc::clone(why)));
        }
        Some(Listed { service: Arc::clone(service), taker: taker.clone(), hosts, faults })
    }
}
