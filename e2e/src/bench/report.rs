//! Figures as they are printed and as they are kept in `target/bench/<group>.json`: each beside what it must be and
//! what we want it to be. It judges, it does not measure.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

/// Which number of a row is held against its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compared {
    /// Ours by itself.
    Ours,
    /// Ours divided by the reference.
    Ratio,
}

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured, and how.
    pub figure: String,
    /// Unit of `ours` and `reference`.
    pub unit: &'static str,
    /// What we measured of ours.
    pub ours: f64,
    /// What was measured beside it, in the same run.
    pub reference: Option<f64>,
    /// What that is.
    pub reference_name: Option<String>,
    /// Ours by the reference: the median of the ratios of single rounds, not the ratio of the two medians.
    pub ratio: Option<f64>,
    /// What the bounds are about.
    pub compared: Compared,
    /// Which way is good.
    pub better: Better,
    /// Short of this the issue is not resolved. None for a row that only informs.
    pub must: Option<f64>,
    /// What we want.
    pub aim: Option<f64>,
}

/// How a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has no bounds.
    Informs,
    /// As good as we want.
    Good,
    /// Good enough, not as good as we want.
    ShortOfAim,
    /// Not good enough.
    ShortOfMust,
}

impl Row {
    /// A figure by itself; the less, the better.
    pub fn new(figure: impl Into<String>, unit: &'static str, ours: f64) -> Self {
        Self {
            figure: figure.into(),
            unit,
            ours,
            reference: None,
            reference_name: None,
            ratio: None,
            compared: Compared::Ours,
            better: Better::Lower,
            must: None,
            aim: None,
        }
    }

    /// Sets what was measured beside it, and holds the ratio of both against the bounds.
    #[must_use]
    pub fn beside(mut self, name: &str, reference: f64, ratio: f64) -> Self {
        self.reference = Some(reference);
        self.reference_name = Some(name.to_owned());
        self.ratio = Some(ratio);
        self.compared = Compared::Ratio;
        self
    }

    /// Sets what was measured beside it; ours by itself is still what the bounds are about.
    #[must_use]
    pub fn above(self, name: &str, reference: f64) -> Self {
        let ratio = self.ours / reference;
        Self { compared: Compared::Ours, ..self.beside(name, reference, ratio) }
    }

    /// Sets the bounds.
    #[must_use]
    pub fn bounds(mut self, must: f64, aim: f64) -> Self {
        self.must = Some(must);
        self.aim = Some(aim);
        self
    }

    /// Takes the bounds away.
    #[must_use]
    pub fn informing(self) -> Self {
        Self { must: None, aim: None, ..self }
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let value = match self.compared {
            Compared::Ours => self.ours,
            Compared::Ratio => self.ratio.unwrap_or(f64::NAN),
        };
        // A figure that is no number holds no bound.
        let holds = |bound: f64| match self.better {
            Better::Lower => value <= bound,
            Better::Higher => value >= bound,
        };
        match (self.must, self.aim) {
            (Some(must), _) if !holds(must) => Standing::ShortOfMust,
            (_, Some(aim)) if !holds(aim) => Standing::ShortOfAim,
            (None, None) => Standing::Informs,
            _ => Standing::Good,
        }
    }
}

/// Keeps a group's figures as JSON.
///
/// # Errors
/// When the file cannot be written.
pub fn save(group: &str, rows: &[Row]) -> Result<()> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    fs::create_dir_all(&folder).context("cannot make target/bench")?;
    let path = folder.join(format!("{group}.json"));
    let mut json = serde_json::to_string_pretty(rows)?;
    json.push('\n');
    fs::write(&path, json).with_context(|| format!("cannot write {}", path.display()))
}

/// Prints a group's figures as a table, coloured on a terminal.
///
/// # Errors
/// When stdout cannot be written.
pub fn print(group: &str, rows: &[Row]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let coloured = stdout.is_terminal();
    stdout.write_all(render(group, rows, coloured).as_bytes())?;
    Ok(stdout.flush()?)
}

/// What the marks of [`print()`] mean.
pub const LEGEND: &str = "✗ short of must   ~ short of aim   ✓ as wanted   · informs\n";

fn render(group: &str, rows: &[Row], coloured: bool) -> String {
    let heads = ["", group, "ours", "reference", "ratio", "must", "aim"].map(str::to_owned);
    let lines: Vec<[String; 7]> = rows.iter().map(cells).collect();
    let mut widths = heads.each_ref().map(|head| head.chars().count());
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::from("\n");
    push_line(&mut text, &heads, &widths, coloured.then_some("1"));
    for (line, row) in lines.iter().zip(rows) {
        let colour = match row.standing() {
            Standing::ShortOfMust => Some("31"),
            Standing::ShortOfAim => Some("33"),
            Standing::Good => Some("32"),
            Standing::Informs => None,
        };
        push_line(&mut text, line, &widths, colour.filter(|_| coloured));
    }
    text
}

fn cells(row: &Row) -> [String; 7] {
    let mark = match row.standing() {
        Standing::ShortOfMust => "✗",
        Standing::ShortOfAim => "~",
        Standing::Good => "✓",
        Standing::Informs => "·",
    };
    let sign = match row.better {
        Better::Lower => '≤',
        Better::Higher => '≥',
    };
    let bound = |bound: Option<f64>| {
        let unit = if row.compared == Compared::Ratio { "×" } else { "" };
        bound.map_or_else(String::new, |bound| format!("{sign} {bound}{unit}"))
    };
    let reference = match (&row.reference, &row.reference_name) {
        (Some(value), Some(name)) => format!("{} {} ({name})", number(*value), row.unit),
        _ => String::new(),
    };
    [
        mark.to_owned(),
        row.figure.clone(),
        format!("{} {}", number(row.ours), row.unit),
        reference,
        row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}×")),
        bound(row.must),
        bound(row.aim),
    ]
}

fn push_line(text: &mut String, cells: &[String; 7], widths: &[usize; 7], colour: Option<&str>) {
    let mut line = String::new();
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let pad = " ".repeat(width - cell.chars().count());
        // Texts to the left, numbers to the right.
        let (before, after) = if matches!(at, 0 | 1 | 3) { ("", pad.as_str()) } else { (pad.as_str(), "") };
        let _ = write!(line, "{before}{cell}{after}  ");
    }
    let line = line.trim_end();
    let _ = match colour {
        Some(colour) => writeln!(text, "\x1b[{colour}m{line}\x1b[0m"),
        None => writeln!(text, "{line}"),
    };
}

/// Three significant digits, whole numbers in full.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if value.fract() == 0.0 || magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_held_against_its_bounds() {
        let row = Row::new("a", "ms", 8.0).bounds(8.0, 4.0);
        assert_eq!(row.standing(), Standing::ShortOfAim);
        assert_eq!(Row { ours: 8.1, ..row.clone() }.standing(), Standing::ShortOfMust);
        assert_eq!(Row { ours: 4.0, ..row.clone() }.standing(), Standing::Good);
        assert_eq!(Row { ours: f64::NAN, ..row }.standing(), Standing::ShortOfMust);
        let ratio = Row::new("b", "µs", 100.0).bounds(2.0, 1.5).beside("c", 40.0, 2.5);
        assert_eq!(ratio.standing(), Standing::ShortOfMust);
        assert_eq!(Row::new("d", "s", 1.0).standing(), Standing::Informs);
    }

    #[test]
    fn a_table_shows_marks_and_bounds() {
        let rows = [Row::new("slow", "ms", 9.0).bounds(8.0, 4.0), Row::new("so-so", "ms", 5.25).bounds(8.0, 4.0)];
        let table = render("latency", &rows, false);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[2].starts_with("✗  slow") && lines[2].ends_with("≤ 8  ≤ 4"), "{table}");
        assert!(lines[3].starts_with("~  so-so") && lines[3].contains("5.25 ms"), "{table}");
    }
}
