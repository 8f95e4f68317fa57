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
