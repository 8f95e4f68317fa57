//! `podlight_discovery_lag_seconds` as numbers, read back from the text that `/metrics` answers: one recorder counts, and
//! what the page shows is what a scraper sees.

use std::collections::BTreeMap;

use serde::Serialize;

/// What every line of the histogram begins with.
const NAME: &str = "podlight_discovery_lag_seconds_";

/// How late the table learned of changes, by whose word it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Lag {
    /// `pushed` or `observed`.
    pub(super) source: String,
    /// Changes.
    pub(super) count: u64,
    /// Their lags together.
    pub(super) sum_seconds: f64,
    /// Changes by their lag, the least first; each is counted once.
    pub(super) buckets: Vec<Bucket>,
}

/// Changes with about the same lag.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Bucket {
    /// The longest lag that is counted here; none for all beyond.
    pub(super) up_to_seconds: Option<f64>,
    /// How many.
    pub(super) count: u64,
}

/// Reads the histogram of each source; a line that is not understood is left out.
pub(super) fn read(metrics: &str) -> Vec<Lag> {
    let mut lags: BTreeMap<&str, Lag> = BTreeMap::new();
    for line in metrics.lines().filter_map(Line::parse) {
        let lag = lags.entry(line.source).or_insert_with(|| Lag {
            source: line.source.to_owned(),
            count: 0,
            sum_seconds: 0.0,
            buckets: Vec::new(),
        });
        match line.part {
            "sum" => lag.sum_seconds = line.value,
            // Counts beyond what a float holds exactly are not to be expected of changes.
            "count" => lag.count = line.value as u64,
            "bucket" => lag.buckets.push(Bucket { up_to_seconds: line.up_to, count: line.value as u64 }),
            _ => {}
        }
    }
    lags.into_values().map(Lag::counted_once).collect()
}

impl Lag {
    /// Prometheus' buckets count what the ones before them count, too.
    fn counted_once(mut self) -> Self {
        let bound = |bucket: &Bucket| bucket.up_to_seconds.unwrap_or(f64::INFINITY);
        self.buckets.sort_by(|a, b| bound(a).total_cmp(&bound(b)));
        let mut before = 0;
        for bucket in &mut self.buckets {
            let so_far = bucket.count;
            bucket.count = so_far.saturating_sub(before);
            before = so_far;
        }
        self
    }
}

struct Line<'a> {
    /// `bucket`, `sum` or `count`.
    part: &'a str,
    source: &'a str,
    up_to: Option<f64>,
    value: f64,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (part, rest) = line.strip_prefix(NAME)?.split_once('{')?;
        let (labels, value) = rest.split_once("} ")?;
        let label =
            |name: &str| labels.split(',').find_map(|l| l.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'));
        let up_to = label("le").and_then(|le| le.parse::<f64>().ok()).filter(|le| le.is_finite());
        Some(Self { part, source: label("source")?, up_to, value: value.parse().ok()? })
    }
}
