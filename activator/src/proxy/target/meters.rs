//! What is counted of requests on their way to a place, by the mode of their target. The handles are looked up once, so
//! that counting is an addition.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::quarantine::Reason;
use super::settings::Mode;
use crate::table::entry::Source;

/// The handles of every mode.
#[derive(Debug)]
pub(super) struct Meters([OfMode; Mode::ALL.len()]);

impl Meters {
    pub(super) fn new() -> Self {
        Self(Mode::ALL.map(OfMode::new))
    }

    pub(super) fn of(&self, mode: Mode) -> &OfMode {
        &self.0[mode as usize]
    }
}

/// One mode's handles.
#[derive(Debug)]
pub(super) struct OfMode {
    held: Gauge,
    /// By source.
    released: [Counter; 2],
    held_seconds: [Histogram; 2],
    /// By reason.
    quarantines: [Counter; 2],
}

/// In the order of `by_source`.
const SOURCES: [&str; 2] = ["push", "watch"];

/// In the order of `by_reason`.
const REASONS: [Reason; 2] = [Reason::Refused, Reason::TimedOut];

const fn by_source(source: Source) -> usize {
    match source {
        Source::Pushed => 0,
        Source::Observed => 1,
    }
}

const fn by_reason(reason: Reason) -> usize {
    match reason {
        Reason::Refused => 0,
        Reason::TimedOut => 1,
    }
}

impl OfMode {
    fn new(mode: Mode) -> Self {
        let mode = mode.as_str();
        Self {
            held: gauge!("podlight_proxy_held", "mode" => mode),
            released: SOURCES.map(|of| counter!("podlight_proxy_released_total", "source" => of, "mode" => mode)),
            held_seconds: SOURCES.map(|of| histogram!("podlight_proxy_held_seconds", "source" => of, "mode" => mode)),
            quarantines: REASONS
                .map(|why| counter!("podlight_proxy_quarantines_total", "reason" => why.label(), "mode" => mode)),
        }
    }

    /// A request is held.
    pub(super) fn held(&self) {
        self.held.increment(1.0);
    }

    /// A request is held no longer, whatever became of it.
    pub(super) fn left(&self) {
        self.held.decrement(1.0);
    }

    /// A held request got a place after so long, on an endpoint that is ready by somebody's word.
    pub(super) fn released(&self, source: Source, after: Duration) {
        self.released[by_source(source)].increment(1);
        self.held_seconds[by_source(source)].record(after.as_secs_f64());
    }

    /// A backend was put in quarantine.
    pub(super) fn quarantined(&self, reason: Reason) {
        self.quarantines[by_reason(reason)].increment(1);
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn what_is_held_released_and_quarantined_is_told_by_mode() {
        let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).expect("buckets").build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let meters = Meters::new();
            Mode::ALL.into_iter().for_each(|mode| meters.of(mode).held());
            meters.of(Mode::Always).left();
            meters.of(Mode::ColdStartOnly).released(Source::Pushed, Duration::from_secs(2));
            meters.of(Mode::Disabled).quarantined(Reason::TimedOut);
        });
        let text = recorder.handle().render();
        for line in [
            r#"podlight_proxy_held{mode="always"} 0"#,
            r#"podlight_proxy_held{mode="cold-start-only"} 1"#,
            r#"podlight_proxy_released_total{source="push",mode="cold-start-only"} 1"#,
            r#"podlight_proxy_held_seconds_sum{source="push",mode="cold-start-only"} 2"#,
            r#"podlight_proxy_quarantines_total{reason="timed-out",mode="disabled"} 1"#,
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }
}
