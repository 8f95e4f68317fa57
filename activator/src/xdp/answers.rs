//! What is to be answered at each place, from pictures of the table: a plain value that takes pictures and tells what has
//! changed since it was last asked. It costs what has changed, never the size of the table.
//!
//! Invariant: a place says ready only if the latest pictures of all Services that speak for it do. A Service is ready
//! when any of its endpoints is; an address only when every endpoint that has it is, since only one of them can be the
//! pod that is there, and nobody knows which.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use serde::Serialize;
use smallvec::SmallVec;

use super::place::{Place, Probe};
use crate::table::group::{Endpoint, EndpointId, GroupKey, GroupSnapshot};

/// What is answered at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// 200 or 503.
    pub ready: bool,
    /// How many endpoints of those that it is about are ready.
    pub ready_endpoints: u32,
    /// How many there are.
    pub endpoints: u32,
}

/// A place and what is answered there from now on; none is 404.
pub type Difference = (Arc<Place>, Option<Answer>);

/// When a place with several endpoints says ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Any,
    All,
}

/// What is said about one place, added up.
#[derive(Debug)]
struct Claim {
    rule: Rule,
    /// How many Services and endpoints speak of it.
    holders: u32,
    ready: u32,
    total: u32,
}

impl Claim {
    fn answer(&self) -> Answer {
        let ready = match self.rule {
            Rule::Any => self.ready > 0,
            Rule::All => self.total > 0 && self.ready == self.total,
        };
        Answer { ready, ready_endpoints: self.ready, endpoints: self.total }
    }
}

/// One Service.
#[derive(Debug)]
struct Group {
    /// None when it cannot be asked for.
    place: Option<Arc<Place>>,
    /// Whether it chooses its pods itself. Endpoints that somebody else wrote down may have anybody's address, and are
    /// not what configured probes are about.
    selects: bool,
    members: HashMap<EndpointId, Member>,
}

/// One endpoint.
#[derive(Debug)]
struct Member {
    ready: bool,
    addresses: SmallVec<[IpAddr; 2]>,
    /// Where it counts besides its Service's place: at its addresses' and at those of configured probes.
    places: SmallVec<[Arc<Place>; 2]>,
}

/// All places.
#[derive(Debug)]
pub struct Answers {
    probes: HashMap<GroupKey, Vec<Probe>>,
    longest_path: usize,
    groups: HashMap<GroupKey, Group>,
    places: Places,
}

impl Answers {
    /// No places yet. Paths longer than `longest_path` bytes are never told.
    pub fn new(probes: &[Probe], longest_path: usize) -> Self {
        let mut by_group: HashMap<GroupKey, Vec<Probe>> = HashMap::new();
        for probe in probes {
            by_group.entry(probe.group.clone()).or_default().push(probe.clone());
        }
        Self { probes: by_group, longest_path, groups: HashMap::new(), places: Places::default() }
    }

    /// Every Service that is known.
    pub fn groups(&self) -> impl Iterator<Item = &GroupKey> {
        self.groups.keys()
    }

    /// What is answered at a place now.
    pub fn at(&self, place: &Place) -> Option<Answer> {
        self.places.claims.get(place).map(Claim::answer)
    }

    /// What has changed since this was last asked, in the order in which it is to be written: what goes, what is no
    /// longer ready, then what is ready, so that nothing says ready beside something that should not any more.
    pub fn differences(&mut self) -> Vec<Difference> {
        let Places { claims, touched } = &mut self.places;
        let now = |place: &Arc<Place>| claims.get(place).map(Claim::answer);
        let changed = touched.drain().map(|(place, told)| (now(&place), place, told));
        let mut changed: Vec<Difference> =
            changed.filter(|(now, _, told)| now != told).map(|(now, place, _)| (place, now)).collect();
        changed.sort_by_key(|(_, now)| now.map(|answer| answer.ready));
        changed
    }

    /// Takes a picture of all of one Service; none when it is gone.
    pub fn group(&mut self, key: &GroupKey, picture: Option<&GroupSnapshot>) {
        let Some(picture) = picture else { return self.forget(key) };
        let selects = picture.service().is_some_and(|service| service.selector.is_some());
        if self.groups.get(key).is_some_and(|group| group.selects != selects) {
            self.forget(key);
        }
        self.know(key, selects);
        let there: HashSet<EndpointId> = picture.endpoints().map(|endpoint| endpoint.id.clone()).collect();
        let members = self.groups.get(key).into_iter().flat_map(|group| group.members.keys());
        let gone: Vec<EndpointId> = members.filter(|id| !there.contains(*id)).cloned().collect();
        gone.iter().for_each(|id| self.put(key, id, None));
        picture.endpoints().for_each(|endpoint| self.put(key, &endpoint.id, Some(&endpoint)));
    }

    /// Takes what a picture of a Service shows of one endpoint; none when the Service is gone.
    pub fn endpoint(&mut self, key: &GroupKey, id: &EndpointId, picture: Option<&GroupSnapshot>) {
        let Some(picture) = picture else { return self.forget(key) };
        if self.groups.contains_key(key) {
            self.put(key, id, picture.endpoint(id).as_ref());
        } else {
            self.group(key, Some(picture));
        }
    }

    fn forget(&mut self, key: &GroupKey) {
        let Some(group) = self.groups.remove(key) else { return };
        for member in group.members.values() {
            self.places.release(member, group.place.as_ref());
        }
        group.place.iter().for_each(|place| self.places.drop_holder(place));
    }

    fn know(&mut self, key: &GroupKey, selects: bool) {
        if self.groups.contains_key(key) {
            return;
        }
        let place = Place::of_group(key).filter(|place| place.path.len() <= self.longest_path).map(Arc::new);
        place.iter().for_each(|place| self.places.add_holder(place, Rule::Any));
        self.groups.insert(key.clone(), Group { place, selects, members: HashMap::new() });
    }

    fn put(&mut self, key: &GroupKey, id: &EndpointId, endpoint: Option<&Endpoint>) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let Some(endpoint) = endpoint else {
            if let Some(member) = group.members.remove(id) {
                self.places.release(&member, group.place.as_ref());
            }
            return;
        };
        let ready = endpoint.is_ready();
        if let Some(held) = group.members.get_mut(id)
            && *held.addresses == *endpoint.addresses
        {
            if held.ready != ready {
                held.ready = ready;
                held.places.iter().chain(&group.place).for_each(|place| self.places.turn(place, ready));
            }
            return;
        }
        let probes = self.probes.get(key).filter(|_| group.selects).map_or(&[][..], Vec::as_slice);
        let member = Member::new(endpoint, group.place.as_deref(), probes, self.longest_path);
        self.places.claim(&member, group.place.as_ref());
        if let Some(held) = group.members.insert(id.clone(), member) {
            self.places.release(&held, group.place.as_ref());
        }
    }
}

impl Member {
    fn new(endpoint: &Endpoint, group: Option<&Place>, probes: &[Probe], longest_path: usize) -> Self {
        let addresses: SmallVec<[IpAddr; 2]> = SmallVec::from_slice(&endpoint.addresses);
        let mut places: SmallVec<[Arc<Place>; 2]> = SmallVec::new();
        for address in &addresses {
            let own = group.map(|group| group.of_address(*address));
            for place in own.into_iter().chain(probes.iter().map(|probe| probe.of_address(*address))) {
                if place.path.len() <= longest_path && !places.iter().any(|known| **known == place) {
                    places.push(Arc::new(place));
                }
            }
        }
        Self { ready: endpoint.is_ready(), addresses, places }
    }
}

/// What is said about all places.
#[derive(Debug, Default)]
struct Places {
    claims: HashMap<Arc<Place>, Claim>,
    /// Places that were touched, and what was told of them last.
    touched: HashMap<Arc<Place>, Option<Answer>>,
}

impl Places {
    /// An endpoint counts from now on.
    fn claim(&mut self, member: &Member, group: Option<&Arc<Place>>) {
        let rules = member.places.iter().map(|place| (place, Rule::All)).chain(group.map(|place| (place, Rule::Any)));
        for (place, rule) in rules {
            self.add_holder(place, rule);
            self.change(place, |claim| {
                claim.total += 1;
                claim.ready += u32::from(member.ready);
            });
        }
    }

    /// An endpoint counts no longer.
    fn release(&mut self, member: &Member, group: Option<&Arc<Place>>) {
        for place in member.places.iter().chain(group) {
            self.change(place, |claim| {
                claim.total -= 1;
                claim.ready -= u32::from(member.ready);
            });
            self.drop_holder(place);
        }
    }

    /// An endpoint that counts has become ready, or ceased to be.
    fn turn(&mut self, place: &Arc<Place>, ready: bool) {
        self.change(place, |claim| if ready { claim.ready += 1 } else { claim.ready -= 1 });
    }

    fn add_holder(&mut self, place: &Arc<Place>, rule: Rule) {
        self.touch(place);
        let new = || Claim { rule, holders: 0, ready: 0, total: 0 };
        self.claims.entry(Arc::clone(place)).or_insert_with(new).holders += 1;
    }

    fn drop_holder(&mut self, place: &Arc<Place>) {
        self.touch(place);
        if let Some(claim) = self.claims.get_mut(place) {
            claim.holders -= 1;
            if claim.holders == 0 {
                self.claims.remove(place);
            }
        }
    }

    fn change(&mut self, place: &Arc<Place>, change: impl FnOnce(&mut Claim)) {
        self.touch(place);
        if let Some(claim) = self.claims.get_mut(place) {
            change(claim);
        }
    }

    fn touch(&mut self, place: &Arc<Place>) {
        if !self.touched.contains_key(place) {
            let told = self.claims.get(place).map(Claim::answer);
            self.touched.insert(Arc::clone(place), told);
        }
    }
}

#[cfg(test)]
mod tests;
