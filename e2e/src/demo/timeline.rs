//! The demo's output: what happened when, in seconds from the start, with spans in milliseconds. Coloured on a terminal only.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

const BOLD: &str = "1";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const DIM: &str = "2";

/// Writes lines to stdout.
pub(super) struct Timeline {
    began: Instant,
    began_wall: SystemTime,
    coloured: bool,
}

impl Timeline {
    pub(super) fn start() -> Self {
        Self { began: Instant::now(), began_wall: SystemTime::now(), coloured: io::stdout().is_terminal() }
    }

    /// The moment that another process told in microseconds since the epoch.
    pub(super) fn instant(&self, wall_us: u64) -> Instant {
        let wall = UNIX_EPOCH + Duration::from_micros(wall_us);
        match wall.duration_since(self.began_wall) {
            Ok(after) => self.began + after,
            // Nothing in the demo happens before its start; a clock that was set back would say so.
            Err(_) => self.began,
        }
    }

    pub(super) fn heading(&mut self, text: &str) -> Result<()> {
        let text = self.paint(BOLD, text);
        self.line(format_args!("\n{text}"))
    }

    /// Something that happened just now.
    pub(super) fn now(&mut self, text: &str) -> Result<()> {
        self.at(Instant::now(), text)
    }

    /// Something that happened at a moment.
    pub(super) fn at(&mut self, at: Instant, text: &str) -> Result<()> {
        let seconds = at.saturating_duration_since(self.began).as_secs_f64();
        self.line(format_args!("  {seconds:>7.3} s             {text}"))
    }

    /// Something that happened at a moment, because of something that happened before.
    pub(super) fn after(&mut self, cause: Instant, at: Instant, text: &str) -> Result<()> {
        let seconds = at.saturating_duration_since(self.began).as_secs_f64();
        let span = at.saturating_duration_since(cause).as_secs_f64() * 1e3;
        let span = self.paint(GREEN, &format!("+{span:>7.1} ms"));
        self.line(format_args!("  {seconds:>7.3} s {span} {text}"))
    }

    /// What the activator answered, in its own words.
    pub(super) fn quote(&mut self, text: &str) -> Result<()> {
        let text = self.paint(YELLOW, text);
        self.line(format_args!("                        refused: {text}"))
    }

    pub(super) fn note(&mut self, text: &str) -> Result<()> {
        self.line(format_args!("\n{text}"))
    }

    /// A command for the reader.
    pub(super) fn command(&mut self, what: &str, command: &str) -> Result<()> {
        let what = self.paint(DIM, &format!("# {what}"));
        self.line(format_args!("  {what}\n  {command}\n"))
    }

    fn line(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        Ok(stdout.flush()?)
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
