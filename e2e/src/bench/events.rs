//! What an event costs a real activator, beside what its signatures alone cost on the same machine in the same seconds. Rounds
//! alternate between the two, so that a machine that is slow for a while is slow for both.
//!
//! The activator runs in `jwks` mode against a real API server: no review is called for, and each token's RS256 signature is
//! checked. Events come over TLS on kept HTTP/1.1 connections, one under way on each.

use anyhow::{Context, Result, ensure};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use futures::future::try_join_all;
use podlight_proto::{Kind, UnverifiedEvent};
use std::time::Duration;

use super::fleet::{Fleet, Member, Voice};
use super::load::{Connection, Target, request};
use super::replica::Replica;
use super::report::Row;
use super::usage::{CpuMeter, median, micros_each, thread_cpu};

/// Pods needed: one for each first contact.
pub const PODS: usize = 6_000;

/// Events of one round. The first round warms up and does not count.
const EVENTS: usize = 500;

/// Connections, each with one event under way: as much at once as a replica of a busy cluster sees.
const CONNECTIONS: usize = 32;

/// Until the activator has used what it will use for the last answer.
const SETTLE: Duration = Duration::from_millis(10);

/// Threads that verify at once: as many as the activator has beside the sender's.
const VERIFIERS: usize = 2;

/// Measures both figures.
///
/// # Errors
/// When an event is not applied, or something does not run.
pub async fn measure(fleet: &Fleet) -> Result<Vec<Row>> {
    let members = fleet.members.get(..PODS).context("the fleet is too small")?;
    let key = rsa_key(&fleet.control_plane.token_key_pem())?;
    let replica = Replica::start(fleet, "jwks").await?;
    let target = Target::new(replica.events_port())?;
    let connections = members[..CONNECTIONS].iter().map(|member| target.connect(member.address));
    let mut bench = Bench { meter: CpuMeter::new(replica.id()), connections: try_join_all(connections).await? };

    let mut voices: Vec<Voice<'_>> = members.iter().map(Voice::start).collect::<Result<_>>()?;
    let mut contacts = Rounds::default();
    for voices in voices.chunks_mut(EVENTS) {
        let events: Vec<String> = voices.iter_mut().map(|voice| voice.say(Kind::NotReady, false, true)).collect();
        let with_tokens = voices.iter().zip(&events).map(|(voice, event)| request(event, Some(&voice.member.token)));
        let ours = bench.deliver(&with_tokens.collect::<Vec<_>>()).await?;
        let members: Vec<&Member> = voices.iter().map(|voice| voice.member).collect();
        contacts.add(ours, verify_alone(&events, Some((&key, &members)))?);
    }

    let mut heartbeats = Rounds::default();
    for voices in voices.chunks_mut(EVENTS) {
        let events: Vec<String> = voices.iter_mut().map(|voice| voice.say(Kind::Heartbeat, false, false)).collect();
        let ours = bench.deliver(&events.iter().map(|event| request(event, None)).collect::<Vec<_>>()).await?;
        heartbeats.add(ours, verify_alone(&events, None)?);
    }
    let how = format!("jwks, TLS, {CONNECTIONS} kept connections");
    Ok(vec![
        contacts.row(format!("CPU per first-contact event, whole process ({how})"), "RS256 + Ed25519 alone", 2.2, 1.6),
        heartbeats.row(format!("CPU per heartbeat, whole process ({how})"), "Ed25519 alone", 2.5, 1.6),
    ])
}

struct Bench {
    meter: CpuMeter,
    connections: Vec<Connection>,
}

impl Bench {
    /// Sends the requests and returns the CPU time that the activator has used for them.
    async fn deliver(&mut self, requests: &[Vec<u8>]) -> Result<Duration> {
        let before = self.meter.total()?;
        let count = self.connections.len();
        let senders = self.connections.iter_mut().enumerate().map(async |(n, connection)| {
            for request in requests.iter().skip(n).step_by(count) {
                let answer = connection.exchange(request).await?;
                ensure!(answer.is_applied(), "an event was not applied: {} {}", answer.status, answer.body);
            }
            Ok(())
        });
        try_join_all(senders).await?;
        tokio::time::sleep(SETTLE).await;
        Ok(self.meter.total()?.saturating_sub(before))
    }
}

/// Pairs of what we used and what the signatures alone did, in microseconds an event.
#[derive(Default)]
struct Rounds {
    ours: Vec<f64>,
    reference: Vec<f64>,
}

impl Rounds {
    fn add(&mut self, ours: Duration, reference: Duration) {
        self.ours.push(micros_each(ours, EVENTS));
        self.reference.push(micros_each(reference, EVENTS));
    }

    fn row(&self, figure: String, reference_name: &str, must: f64, aim: f64) -> Row {
        let (ours, reference) = (&self.ours[1..], &self.reference[1..]);
        let ratios: Vec<f64> = ours.iter().zip(reference).map(|(ours, reference)| ours / reference).collect();
        Row::new(figure, "µs", median(ours))
            .beside(reference_name, median(reference), median(&ratios))
            .bounds(must, aim)
    }
}

/// CPU time of checking the events' signatures, and their tokens' if given, and of nothing else: everything is parsed before.
fn verify_alone(events: &[String], tokens: Option<(&ParsedPublicKey, &[&Member])>) -> Result<Duration> {
    let part = events.len().div_ceil(VERIFIERS);
    std::thread::scope(|scope| {
        let verifiers: Vec<_> = (0..VERIFIERS)
            .map(|n| {
                let events = events.get(n * part..).unwrap_or_default();
                let events = &events[..part.min(events.len())];
                let tokens = tokens.map(|(key, members)| (key, &members[n * part..][..events.len()]));
                scope.spawn(move || verify_part(events, tokens))
            })
            .collect();
        let used = verifiers
            .into_iter()
            .map(|verifier| verifier.join().map_err(|_| anyhow::anyhow!("a verifier panicked"))?);
        used.sum()
    })
}

fn verify_part(events: &[String], tokens: Option<(&ParsedPublicKey, &[&Member])>) -> Result<Duration> {
    let parsed = events.iter().map(|event| UnverifiedEvent::parse(event.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let mut signed = Vec::new();
    for member in tokens.iter().flat_map(|(_, members)| members.iter()) {
        let (message, signature) = member.token.rsplit_once('.').context("a token without signature")?;
        signed.push((message, BASE64_URL_SAFE_NO_PAD.decode(signature)?));
    }
    let begun = thread_cpu();
    if let Some((key, _)) = tokens {
        for (message, signature) in &signed {
            key.verify_sig(message.as_bytes(), signature)?;
        }
    }
    for event in parsed {
        std::hint::black_box(event.verify()?);
    }
    Ok(thread_cpu().saturating_sub(begun))
}

fn rsa_key(pem: &str) -> Result<ParsedPublicKey> {
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    Ok(ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, BASE64_STANDARD.decode(base64)?)?)
}
