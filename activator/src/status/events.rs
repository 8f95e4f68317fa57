//! Server-sent events out of bytes, as far as an activator sends them.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ServerEvent {
    /// Its name.
    pub(super) name: String,
    /// Where to resume after it.
    pub(super) id: Option<String>,
    /// What it says.
    pub(super) data: String,
}

/// Collects bytes until they are events.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    buffer: Vec<u8>,
    read: usize,
    event: ServerEvent,
}

impl EventReader {
    /// Takes bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.read));
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event that is complete.
    pub(super) fn next_event(&mut self) -> Option<ServerEvent> {
        loop {
            let unread = &self.buffer[self.read..];
            let end = unread.iter().position(|byte| *byte == b'\n')?;
            let line = String::from_utf8_lossy(&unread[..end]).trim_end_matches('\r').to_owned();
            self.read += end + 1;
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.name.is_empty() {
                    return Some(event);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.event.name),
                "id" => self.event.id = Some(value.to_owned()),
                "data" => self.event.data.push_str(value),
                // Comments, which show that the connection lives, and what is not used here.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let text = "retry: 1000\n\n:\n\nevent: synced\nid: i-1\ndata: {\"a\":\"ü\"}\n\nevent: target\r\ndata:x\r\n\r\n";
        let expected = [
            ServerEvent { name: "synced".into(), id: Some("i-1".into()), data: "{\"a\":\"ü\"}".into() },
            ServerEvent { name: "target".into(), id: None, data: "x".into() },
        ];
        for cut in 0..=text.len() {
            let mut reader = EventReader::default();
            let mut events = Vec::new();
            for piece in [&text.as_bytes()[..cut], &text.as_bytes()[cut..]] {
                reader.push(piece);
                events.extend(std::iter::from_fn(|| reader.next_event()));
            }
            assert_eq!(events, expected, "cut at {cut}");
        }
    }
}
