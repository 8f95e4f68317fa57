//! Spans of time as people write them: `250ms`, `5s`, `2m`, `1h`.

use std::time::Duration;

/// Why a text is no span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a whole number and ms, s, m or h, at most 24h")]
pub(crate) struct DurationError;

/// Longest span that is meant seriously by anybody.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or(DurationError)?);
    let number: u64 = number.parse().map_err(|_| DurationError)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(DurationError),
    };
    let span = number.checked_mul(unit_ms).map(Duration::from_millis).ok_or(DurationError)?;
    if span > LONGEST { Err(DurationError) } else { Ok(span) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_whole_number_and_a_unit() {
        for (text, ms) in [("0s", 0), ("250ms", 250), ("5s", 5000), ("2m", 120_000), ("24h", 86_400_000)] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "s", "-1s", "1.5s", "5 s", "25h", "99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse(bad), Err(DurationError), "{bad}");
        }
    }
}
