//! `podlight-activator xdp`: what a running activator's readiness map holds and who answers from it, asked of its admin port.
//! Whether that tells anybody, `--status-page` decides.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args as ArgGroup, Subcommand};
use http::StatusCode;
use reqwest::{Client, Url};

use super::probe::{self, ProbeArgs, ProbeError};
use super::status::{Contents, InterfaceView, MOST_SHOWN, Shown};

/// An activator on this machine, or behind a `kubectl port-forward`.
const ADMIN: &str = "http://localhost:9401";

/// How long the answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Flags of `podlight-activator xdp`.
#[derive(Debug, ArgGroup)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MapArgs {
    #[command(subcommand)]
    command: Option<MapCommand>,
    /// Base URL of an activator's admin port.
    #[arg(long, env = "PODLIGHT_ADMIN", default_value = ADMIN)]
    admin: String,
    /// Only answers whose place begins so, as `/ready/shop/` or `10.0.0.1:8080`.
    #[arg(long, default_value = "")]
    beginning: String,
    /// Most answers shown: up to 1000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=MOST_SHOWN as i64))]
    limit: u16,
}

/// What else can be done.
#[derive(Debug, Subcommand)]
pub enum MapCommand {
    /// Ask once, as a kubelet does: prints the status, how long it took and who answered; fails unless it is 200 to 399.
    Probe(ProbeArgs),
}

/// Why the map cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The base URL is none.
    #[error("{0:?} is not a URL")]
    Url(String),
    /// The activator cannot be reached.
    #[error("cannot ask {server}")]
    Call {
        /// Which activator.
        server: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It tells nothing.
    #[error("the activator has no readiness map (--xdp-listen), or does not show it (--status-page)")]
    Nothing,
    /// It says no.
    #[error("the activator answers {0}")]
    Refused(StatusCode),
    /// It says something that makes no sense.
    #[error("the answer is not an activator's")]
    Answer(#[from] serde_json::Error),
    /// The terminal takes nothing.
    #[error("cannot print")]
    Print(#[from] io::Error),
    /// A probe failed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// Shows the map, or probes.
///
/// # Errors
/// [`ShowError`].
pub async fn run(args: &MapArgs, mut out: impl Write) -> Result<(), ShowError> {
    if let Some(MapCommand::Probe(probe)) = &args.command {
        return Ok(probe::run(probe, out).await?);
    }
    match print(&ask(args).await?, &mut out) {
        // As `head` does it: nobody wants to see more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}

async fn ask(args: &MapArgs) -> Result<Contents, ShowError> {
    let server = args.admin.trim_end_matches('/');
    let failed = |source| ShowError::Call { server: server.to_owned(), source };
    let client = Client::builder().no_proxy().timeout(TIMEOUT).build().map_err(failed)?;
    let query = [("beginning", args.beginning.as_str()), ("limit", &args.limit.to_string())];
    let url =
        Url::parse_with_params(&format!("{server}/status/xdp"), query).map_err(|_| ShowError::Url(server.into()))?;
    let answer = client.get(url).send().await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => Ok(serde_json::from_slice(&answer.bytes().await.map_err(failed)?)?),
        StatusCode::NOT_FOUND => Err(ShowError::Nothing),
        status => Err(ShowError::Refused(status)),
    }
}

fn print(contents: &Contents, out: &mut impl Write) -> io::Result<()> {
    let Contents { map, age_ms, packets, shown, cut } = contents;
    let because = |why: &Option<String>| why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    writeln!(out, "readiness port  {}", map.listen)?;
    writeln!(out, "served by       {}{}", map.serving.as_str(), because(&map.why))?;
    if let Some(program) = &map.program {
        writeln!(out, "program         {} (id {})", program.name, program.id)?;
    }
    for InterfaceView { name, asked, serving, why } in &map.interfaces {
        writeln!(out, "interface       {name}: {} (asked for {asked}){}", serving.as_str(), because(why))?;
    }
    let alive = if map.alive { "answers are given" } else { "all is answered 503" };
    match age_ms {
        Some(age) => writeln!(out, "sign of life    {age} ms ago, good for {} ms: {alive}", map.ttl_ms)?,
        None => writeln!(out, "sign of life    none: {alive}")?,
    }
    let left_out = if map.left_out > 0 { format!(", {} without room are 404", map.left_out) } else { String::new() };
    writeln!(out, "answers         {} of at most {}{left_out}", map.answers, map.most_answers)?;
    for (what, packets) in packets.iter().filter(|(_, packets)| **packets > 0) {
        writeln!(out, "packets         {packets} {what}")?;
    }
    writeln!(out)?;
    for Shown { at, path, status, ready, endpoints } in shown {
        let at = at.map(|at| at.to_string()).unwrap_or_default();
        writeln!(out, "{status}  {:>11}  {at}{path}", format!("{ready} of {endpoints}"))?;
    }
    if *cut > 0 {
        writeln!(out, "and {cut} more")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::xdp::status::{ProgramView, Serving, View};

    #[test]
    fn prints_who_answers_why_and_what() {
        let interface = |name: &str, serving, why: Option<&str>| InterfaceView {
            name: name.to_owned(),
            asked: "auto".to_owned(),
            serving,
            why: why.map(str::to_owned),
        };
        let map = View {
            listen: "0.0.0.0:9403".parse().expect("an address"),
            serving: Serving::Generic,
            why: None,
            program: Some(ProgramView { name: "podlight".to_owned(), id: 7 }),
            interfaces: vec![
                interface("eth0", Serving::Generic, None),
                interface("eth1", Serving::Userspace, Some("no such interface")),
            ],
            alive: true,
            ttl_ms: 2000,
            answers: 3,
            most_answers: 3,
            left_out: 1,
        };
        let shown = |at: Option<&str>, path: &str, status| Shown {
            at: at.map(|at| at.parse().expect("an address")),
            path: path.to_owned(),
            status,
            ready: 1,
            endpoints: 2,
        };
        let contents = Contents {
            map,
            age_ms: Some(12),
            packets: BTreeMap::from([("syn".to_owned(), 3), ("reset".to_owned(), 0)]),
            shown: vec![shown(None, "/ready/shop/web", 200), shown(Some("10.0.0.1:80"), "/healthz", 503)],
            cut: 1,
        };
        let mut out = Vec::new();
        print(&contents, &mut out).expect("a Vec takes everything");
        let wanted = "\
readiness port  0.0.0.0:9403
served by       generic
program         podlight (id 7)
interface       eth0: generic (asked for auto)
interface       eth1: userspace (asked for auto): no such interface
sign of life    12 ms ago, good for 2000 ms: answers are given
answers         3 of at most 3, 1 without room are 404
packets         3 syn

200       1 of 2  /ready/shop/web
503       1 of 2  10.0.0.1:80/healthz
and 1 more
";
        assert_eq!(String::from_utf8(out).expect("text"), wanted);
    }
}
