//! The text that `/metrics` answers, asked for single values.

use anyhow::{Result, ensure};

use crate::http_client;

/// One reading of a process's metrics.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Reads them from an admin port.
    ///
    /// # Errors
    /// When it does not answer 200.
    pub async fn read(admin: &str) -> Result<Self> {
        let response = http_client()?.get(format!("{admin}/metrics")).send().await?;
        ensure!(response.status() == 200, "{}", response.status());
        Ok(Self(response.text().await?))
    }

    /// The sum of all samples of this name that have all these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name, labels).sum()
    }

    /// Whether there is a sample of this name with all these labels.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.samples(name, labels).next().is_some()
    }

    /// The buckets of this name, over all labels; none when nothing was recorded.
    pub fn histogram(&self, name: &str) -> Histogram {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for line in self.0.lines() {
            let parsed = line.strip_prefix(name).and_then(|rest| rest.strip_prefix("_bucket{")).and_then(|rest| {
                let (labels, count) = rest.rsplit_once(' ')?;
                let (_, bound) = labels.split_once("le=\"")?;
                let (bound, _) = bound.split_once('"')?;
                Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, count.parse::<f64>().ok()?))
            });
            let Some((bound, count)) = parsed else { continue };
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        Histogram(buckets)
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.0
    }

    fn samples(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        self.0.lines().filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, attributes) = series.split_once('{').unwrap_or((series, ""));
            let wanted = found == name && labels.iter().all(|label| attributes.contains(label.as_str()));
            if wanted { value.parse().ok() } else { None }
        })
    }
}

/// A histogram: each bucket's upper bound, and how many values are not above it.
#[derive(Clone, Debug)]
pub struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// What was recorded since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let of = |bound: f64| before.0.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count);
        Self(self.0.iter().map(|(bound, count)| (*bound, count - of(*bound))).collect())
    }

    /// How many values there are.
    pub fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The least bound that this part of all values is not above; infinite when they are beyond all, or there are none.
    pub fn at_most(&self, part: f64) -> f64 {
        let enough = self.count() * part;
        let bucket = self.0.iter().find(|(_, count)| *count >= enough && *count > 0.0);
        bucket.map_or(f64::INFINITY, |(bound, _)| *bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_tells_bounds_of_what_was_recorded_in_between() {
        let text = |low: u32, high: u32| {
            Metrics(format!(
                "a_bucket{{le=\"0.1\"}} {low}\na_bucket{{le=\"0.5\"}} {high}\na_bucket{{le=\"+Inf\"}} {high}\n"
            ))
        };
        let between = text(105, 210).histogram("a").since(&text(100, 110).histogram("a"));
        assert_eq!(between.count(), 100.0);
        assert_eq!([between.at_most(0.04), between.at_most(0.5), between.at_most(1.0)], [0.1, 0.5, 0.5]);
        assert_eq!(text(0, 0).histogram("b").at_most(0.5), f64::INFINITY);
    }
}
