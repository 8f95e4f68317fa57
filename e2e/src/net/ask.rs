//! Probes from the client's namespace, by programs that ask in earnest: curl, wrk and the kubelet's own prober.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::pair::Pair;
use super::tools::output;

/// The status of an answer that curl got, and its body.
///
/// # Errors
/// When it got none.
pub async fn curl(pair: &Pair, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let url = format!("http://{to}{path}");
    let arguments = ["--silent", "--show-error", "--globoff", "--max-time", "5", "--write-out", "\n%{http_code}", &url];
    let said = pair.client.run("curl", &arguments).await?;
    let (body, status) = said.rsplit_once('\n').context("curl says nothing")?;
    Ok((status.parse()?, body.to_owned()))
}

/// What wrk counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wrk {
    /// Answers, of any status.
    pub answers: u64,
    /// Those that were neither 2xx nor 3xx.
    pub refusals: u64,
    /// Connections that failed, reads and writes that failed, and answers that did not come.
    pub errors: u64,
    /// Answers a second.
    pub rate: f64,
    /// From a request, not its connection, to its answer, in microseconds.
    pub p50_us: f64,
    /// As `p50_us`.
    pub p99_us: f64,
}

impl Wrk {
    /// Fails unless every probe was answered, and with 200.
    ///
    /// # Errors
    /// When one was not.
    pub fn whole(self) -> Result<Self> {
        ensure!(self.answers > 0 && self.refusals == 0 && self.errors == 0, "{self:?}");
        Ok(self)
    }
}

/// Runs wrk: a new connection a probe, on these cores.
///
/// # Errors
/// When it cannot be run.
pub async fn wrk(
    pair: &Pair,
    to: SocketAddr,
    path: &str,
    connections: usize,
    seconds: u32,
    core: Option<&str>,
) -> Result<Wrk> {
    let (connections, time) = (connections.to_string(), format!("{seconds}s"));
    let url = format!("http://{to}{path}");
    let wrk = ["-t1", "-c", &connections, "-d", &time, "--latency", "-H", "Connection: close", &url];
    let said = match core {
        Some(core) => pair.client.run("taskset", &[&["-c", core, "wrk"], &wrk[..]].concat()).await?,
        None => pair.client.run("wrk", &wrk).await?,
    };
    parse_wrk(&said).with_context(|| said.clone())
}

fn parse_wrk(said: &str) -> Result<Wrk> {
    let after = |name: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(|rest| rest.trim_start_matches(':').trim())
    };
    let summary = said.lines().find(|line| line.contains(" requests in ")).context("no summary")?;
    let counted = |list: &str| -> Result<u64> {
        let numbers = list.split(',').map(|part| part.trim().rsplit(' ').next().unwrap_or_default().parse::<u64>());
        numbers.sum::<Result<u64, _>>().context("no count")
    };
    Ok(Wrk {
        answers: summary.split_whitespace().next().context("no count")?.parse()?,
        refusals: after("Non-2xx or 3xx responses").map_or(Ok(0), counted)?,
        errors: after("Socket errors").map_or(Ok(0), counted)?,
        rate: after("Requests/sec").context("no rate")?.parse()?,
        p50_us: micros(after("50%").context("no median")?)?,
        p99_us: micros(after("99%").context("no percentile")?)?,
    })
}

/// `4.50us`, `1.2ms`, `2.00s`.
fn micros(text: &str) -> Result<f64> {
    let at = text.find(|c: char| c.is_alphabetic()).context("no unit")?;
    let factor = match &text[at..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        unit => anyhow::bail!("a unit {unit:?}"),
    };
    Ok(text[..at].parse::<f64>()? * factor)
}

/// What the kubelet's prober found.
#[derive(Clone, Debug, Deserialize)]
pub struct Kubelet {
    /// How often which verdict (`success`, `warning`, `failure`).
    pub verdicts: BTreeMap<String, usize>,
    /// How often which body, or failure.
    pub outputs: BTreeMap<String, usize>,
    /// The slowest.
    pub worst_us: u64,
}

/// Probes so many times as the kubelet does: the kubelet's own code, built by `e2e/cluster/kubelet-probe.sh`.
///
/// # Errors
/// When that cannot be built or run.
pub async fn kubelet(pair: &Pair, to: SocketAddr, path: &str, count: usize) -> Result<Kubelet> {
    let folder = output(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/kubelet-probe.sh"))).await?;
    let program = format!("{}/kubelet-probe", folder.trim());
    let url = format!("http://{to}{path}");
    let said = pair.client.run(&program, &["-n", &count.to_string(), &url]).await?;
    serde_json::from_str(&said).with_context(|| said.clone())
}

/// Longest wait for a connection or an answer: beyond the kernel's first retransmissions.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends these bytes on a connection of its own, in the given portions, and reads to the end.
///
/// # Errors
/// When nobody accepts, or the connection ends in an error.
pub fn exchange(pair: &Pair, to: SocketAddr, portions: &[&[u8]]) -> Result<Vec<u8>> {
    exchange_within(pair, to, portions, PATIENCE)
}

/// The same for whoever waits less, for the connection and for each part of the answer.
///
/// # Errors
/// As [`exchange`], and when nothing comes in time.
pub fn exchange_within(pair: &Pair, to: SocketAddr, portions: &[&[u8]], patience: Duration) -> Result<Vec<u8>> {
    let mut stream = pair.connect(to, patience)?;
    for portion in portions {
        stream.write_all(portion)?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A probe's request.
pub fn request(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: web\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

/// The status of an answer.
///
/// # Errors
/// When it is none.
pub fn status(answer: &[u8]) -> Result<u16> {
    let line = answer.get(..12).and_then(|line| std::str::from_utf8(line).ok());
    let line = line.with_context(|| format!("no answer: {:?}", String::from_utf8_lossy(answer)))?;
    ensure!(line.starts_with("HTTP/1."), "no answer: {line:?}");
    Ok(line[9..].parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() -> Result<()> {
        let said = "Running 1s test @ http://10.203.0.2:80/
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    72.52us   45.21us   1.50ms   93.00%
  Latency Distribution
     50%   63.00us
     75%   80.00us
     90%  101.00us
     99%    1.87ms
  46319 requests in 1.00s, 7.00MB read
  Socket errors: connect 1, read 2, write 0, timeout 3
  Non-2xx or 3xx responses: 5
Requests/sec:  46310.25
Transfer/sec:      7.00MB
";
        let expected = Wrk { answers: 46319, refusals: 5, errors: 6, rate: 46310.25, p50_us: 63.0, p99_us: 1870.0 };
        assert_eq!(parse_wrk(said)?, expected);
        Ok(())
    }
}
