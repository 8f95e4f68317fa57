//! Endpoints as lines of a table: pure text.

use std::io::{self, Write};

use super::{Endpoint, Key, Port};

/// Names of the columns.
const HEADER: [&str; 10] =
    ["NAMESPACE", "SERVICE", "POD", "STATE", "SOURCE", "AGE", "ADDRESSES", "PORTS", "REVISION", "UID"];

/// Room for the headers, and for every state and source that may come later.
const LEAST: [usize; HEADER.len()] = [9, 7, 3, 11, 8, 4, 9, 5, 8, 3];

/// What stands where there is nothing to say.
const NOTHING: &str = "-";

/// Spaces between columns.
const GAP: usize = 3;

/// One line.
pub(super) type Cells = [String; HEADER.len()];

/// The cells of one endpoint.
pub(super) fn cells((namespace, service, _): &Key, endpoint: &Endpoint) -> Cells {
    let (pod, uid) = endpoint.pod.as_ref().map_or((NOTHING, NOTHING), |pod| (&pod.name, &pod.uid));
    let ports: Vec<String> = endpoint.ports.iter().map(written_port).collect();
    [
        namespace.clone(),
        service.clone(),
        pod.to_owned(),
        endpoint.state.clone(),
        endpoint.source.clone(),
        endpoint.age_ms.map_or(NOTHING.to_owned(), written_age),
        joined(&endpoint.addresses),
        joined(&ports),
        if endpoint.revision.is_empty() { NOTHING.to_owned() } else { endpoint.revision.clone() },
        uid.to_owned(),
    ]
}

fn joined(texts: &[String]) -> String {
    if texts.is_empty() { NOTHING.to_owned() } else { texts.join(",") }
}

fn written_port(Port { name, port }: &Port) -> String {
    if name.is_empty() { port.to_string() } else { format!("{name}:{port}") }
}

/// An age with the precision that matters at that age.
fn written_age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Widths that all lines so far fit in. A later, longer cell moves the rest of its own line only.
#[derive(Debug)]
pub(super) struct Columns([usize; HEADER.len()]);

impl Columns {
    /// For these lines and the header.
    pub(super) fn fitting(lines: &[Cells]) -> Self {
        let mut widths = LEAST;
        for line in lines {
            widths.iter_mut().zip(line).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
        }
        Self(widths)
    }

    /// Prints the header and lines.
    pub(super) fn print_all(&self, lines: &[Cells], out: &mut impl Write) -> io::Result<()> {
        self.print(&HEADER.map(str::to_owned), out)?;
        lines.iter().try_for_each(|line| self.print(line, out))
    }

    /// Prints one line.
    pub(super) fn print(&self, line: &Cells, out: &mut impl Write) -> io::Result<()> {
        let padded = line.iter().zip(self.0).map(|(cell, width)| format!("{cell:<width$}{:GAP$}", ""));
        writeln!(out, "{}", padded.collect::<String>().trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let ages = [0, 119_999, 120_000, 7_199_000, 7_200_000, 172_800_000].map(written_age);
        assert_eq!(ages, ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }

    #[test]
    fn a_longer_cell_moves_only_its_own_line() {
        let cell = |text: &str| std::array::from_fn(|_| text.to_owned());
        let columns = Columns::fitting(&[cell("ab")]);
        let mut out = Vec::new();
        columns.print(&cell("a-very-long-cell"), &mut out).expect("prints");
        columns.print(&cell("ab"), &mut out).expect("prints");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("a-very-long-cell   a-very-long-cell   "), "{text}");
        assert!(lines[1].starts_with("ab          ab        ab    ab            ab         "), "{text}");
    }
}
