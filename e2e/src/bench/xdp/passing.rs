//! What the program costs traffic that is none of its business: a TCP stream through the interface where it is.

use anyhow::{Context, Result};

use super::arena::{Contender, Who};
use super::beside;
use crate::bench::progress;
use crate::bench::proxy::child::{MEASURED_CORE, OTHER_CORE, core_of};
use crate::bench::report::{Better, Row};
use crate::control_plane::process::Process;
use crate::eventually::eventually;
use crate::net::ground::Mode;
use crate::net::pair::{Pair, SERVER};

const PORT: u16 = 5201;

const SECONDS: &str = "2";

const ROUNDS: usize = 3;

/// Measures both modes beside nothing at all; the contender without a program stands for that.
pub(super) async fn measure(contenders: &[Contender]) -> Result<Vec<Row>> {
    let watched = [Who::Nginx, Who::Ours(Mode::Generic), Who::Ours(Mode::Native)];
    let mut streams = Vec::new();
    for who in watched {
        let contender = contenders.iter().find(|contender| contender.who == who).context("no such contender")?;
        streams.push(Stream::start(&contender.pair).await?);
    }
    let mut all = watched.map(|_| [Vec::new(), Vec::new()]);
    for round in 0..=ROUNDS {
        progress(&format!("a stream that passes, round {round} of {ROUNDS}"));
        for (stream, rates) in streams.iter().zip(&mut all) {
            for (direction, rates) in ["--no-delay", "--reverse"].into_iter().zip(rates) {
                let rate = stream.measure(direction).await?;
                if round > 0 {
                    rates.push(rate);
                }
            }
        }
    }
    let [none, generic, native] = all;
    let mut rows = Vec::new();
    for (name, rates) in [("XDP generic", &generic), ("XDP native", &native)] {
        for (at, way) in ["to", "from"].into_iter().enumerate() {
            let figure = format!("a TCP stream {way} the interface, {name}");
            let row = beside(&figure, "Gbit/s", "no program", &rates[at], &none[at]);
            rows.push(Row { better: Better::Higher, ..row });
        }
    }
    Ok(rows)
}

struct Stream<'a> {
    pair: &'a Pair,
    _server: Process,
}

impl<'a> Stream<'a> {
    async fn start(pair: &'a Pair) -> Result<Self> {
        let port = PORT.to_string();
        let server = pair.server.start("iperf3", &["--server", "--port", &port], Some(&core_of(MEASURED_CORE)))?;
        eventually("iperf3 listens", async || Ok((pair.server.sockets(PORT, &["0A"])? > 0).then_some(()))).await?;
        Ok(Self { pair, _server: server })
    }

    async fn measure(&self, direction: &str) -> Result<f64> {
        let (port, server, core) = (PORT.to_string(), SERVER.to_string(), core_of(OTHER_CORE));
        let iperf =
            ["-c", &core, "iperf3", "--client", &server, "--port", &port, "--time", SECONDS, "--json", direction];
        let said: serde_json::Value = serde_json::from_str(&self.pair.client.run("taskset", &iperf).await?)?;
        let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(rate.context("iperf3 says no rate")? / 1e9)
    }
}
