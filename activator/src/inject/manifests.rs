//! Manifests in, manifests with the sidecar out: YAML of several documents or JSON, with Pods, the workloads that have a
//! template of one, and Lists of them. A document in which nothing is injected comes out as it went in, to the letter.

use json_patch::Patch;
use serde_json::Value;

use super::{Notice, Reason, Settings, Subject, decide};

/// What came of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Output {
    /// The manifests.
    pub(super) text: String,
    /// Pods that were left as they are, and why, where that may not be what was meant.
    pub(super) notes: Vec<String>,
}

/// What cannot be used of a text, all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Faults(Vec<String>);

/// Injects a text. `namespace` is that of objects that name none.
pub(super) fn inject(text: &str, namespace: Option<&str>, settings: &Settings) -> Result<Output, Faults> {
    let mut work = Work { namespace, settings, notes: Vec::new(), faults: Vec::new() };
    let written = documents(text).enumerate().map(|(index, document)| work.document(index + 1, document)).collect();
    let Work { notes, faults, .. } = work;
    if faults.is_empty() { Ok(Output { text: written, notes }) } else { Err(Faults(faults)) }
}

/// A document's separator, which may be missing from the first, and the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Document<'a> {
    separator: &'a str,
    content: &'a str,
}

/// In YAML a line that begins with `---` is a separator wherever it is, block scalars included.
fn documents(text: &str) -> impl Iterator<Item = Document<'_>> {
    let marks = |line: &str| {
        line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut starts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if marks(line) && at != 0 {
            starts.push(at);
        }
        at += line.len();
    }
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([text.len()]).collect();
    starts.into_iter().zip(ends).map(move |(start, end)| {
        let document = &text[start..end];
        // What follows on the separator's line belongs to the document, unless it is a comment.
        let line = document.find('\n').map_or(document.len(), |end| end + 1);
        let rest = document.get(3..line).unwrap_or_default().trim_start();
        let cut = match () {
            () if !marks(document) => 0,
            () if rest.is_empty() || rest.starts_with('#') => line,
            () => 3,
        };
        let (separator, content) = document.split_at(cut);
        Document { separator, content }
    })
}

struct Work<'a> {
    namespace: Option<&'a str>,
    settings: &'a Settings,
    notes: Vec<String>,
    faults: Vec<String>,
}

impl Work<'_> {
    /// The document as it is to be written.
    fn document(&mut self, number: usize, document: Document<'_>) -> String {
        let Document { separator, content } = document;
        let changed = self.content(content).unwrap_or_else(|fault| {
            self.faults.push(format!("document {number}: {fault}"));
            None
        });
        match changed {
            // What stood on the separator's line now follows it.
            Some(text) if !separator.is_empty() && !separator.ends_with('\n') => format!("{separator}\n{text}"),
            Some(text) => format!("{separator}{text}"),
            None => format!("{separator}{content}"),
        }
    }

    /// The content anew; none when nothing in it changes.
    fn content(&mut self, content: &str) -> Result<Option<String>, String> {
        let idle = |line: &str| line.is_empty() || line.starts_with(['#', '%']) || line == "...";
        if content.lines().map(str::trim).all(idle) {
            return Ok(None);
        }
        if let Some(mut objects) = json(content) {
            let changed = objects.iter_mut().fold(false, |changed, object| self.object(object) | changed);
            let texts = objects.iter().map(serde_json::to_string_pretty).collect::<Result<Vec<_>, _>>();
            let texts = texts.map_err(|e| e.to_string())?;
            return Ok(changed.then(|| texts.iter().map(|text| format!("{text}\n")).collect()));
        }
        let mut object: Value = from_yaml(content)?;
        if self.object(&mut object) { to_yaml(&object).map(Some) } else { Ok(None) }
    }

    /// Injects an object, and returns whether it changed.
    fn object(&mut self, object: &mut Value) -> bool {
        let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let (path, revision_label) = match (version.as_str(), kind.as_str()) {
            ("v1", "Pod") => ("", None),
            ("apps/v1", "Deployment") => ("/spec/template", Some("pod-template-hash")),
            ("apps/v1", "StatefulSet" | "DaemonSet") => ("/spec/template", Some("controller-revision-hash")),
            ("batch/v1", "Job") => ("/spec/template", None),
            ("batch/v1", "CronJob") => ("/spec/jobTemplate/spec/template", None),
            ("v1", "List") => {
                let items = object.get_mut("items").and_then(Value::as_array_mut);
                return items.into_iter().flatten().fold(false, |changed, item| self.object(item) | changed);
            }
            _ => return false,
        };
        let metadata = |name: &str| object.get("metadata").and_then(|m| m.get(name)?.as_str()).map(str::to_owned);
        let namespace = metadata("namespace").or_else(|| self.namespace.map(str::to_owned));
        let name = metadata("name").or_else(|| metadata("generateName")).unwrap_or_default();
        let named = match &namespace {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        let decided = match object.pointer(path) {
            Some(pod) => decide(Subject { pod, namespace: namespace.as_deref(), revision_label }, self.settings),
            None => Err(Reason::Malformed(format!("it has nothing at {path}"))),
        };
        decided.and_then(|patch| apply(object, path, &patch)).map_or_else(
            |reason| {
                match (&reason, reason.notice()) {
                    (Reason::Setting { .. } | Reason::Malformed(_), _) => {
                        self.faults.push(format!("{named}: {reason}"))
                    }
                    (_, Notice::None) => {}
                    (_, Notice::Caller | Notice::Everyone) => {
                        self.notes.push(format!("{named} is left as it is: {reason}"))
                    }
                }
                false
            },
            |()| true,
        )
    }
}

fn apply(object: &mut Value, path: &str, patch: &Patch) -> Result<(), Reason> {
    let pod = object.pointer_mut(path).ok_or_else(|| Reason::Malformed(format!("it has nothing at {path}")))?;
    json_patch::patch(pod, patch).map_err(|e| Reason::Malformed(e.to_string()))
}

/// The objects of a text that is JSON.
fn json(content: &str) -> Option<Vec<Value>> {
    if !content.trim_start().starts_with('{') {
        return None;
    }
    serde_json::Deserializer::from_str(content).into_iter().collect::<Result<_, _>>().ok()
}

/// As kubectl reads it, YAML 1.1: `0644` is octal.
fn from_yaml(content: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    serde_saphyr::from_str_with_options(content, options).map_err(|e| e.to_string())
}

/// What readers of YAML 1.1 and 1.2 read alike.
fn to_yaml(object: &Value) -> Result<String, String> {
    // No line is broken.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: 100_000 };
    serde_saphyr::to_string_with_options(object, options).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
