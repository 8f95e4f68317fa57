//! Manifests as people write them: YAML with several documents, JSON, lists. Read whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::pod_uid;

/// Namespace and name.
pub(super) type Name = (String, String);

/// A file written this lately may be written again without its time telling; it is compared by content.
const RECENT: Duration = Duration::from_secs(2);

/// Why manifests cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is empty, as if it were just being written")]
    Empty { path: PathBuf },
    #[error("{path} is not YAML")]
    Yaml { path: PathBuf, source: Box<serde_saphyr::Error> },
    #[error("{path} is not JSON")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path}: a {kind} is not as it should be")]
    Object { path: PathBuf, kind: String, source: serde_json::Error },
    #[error("{path}: an object without kind or metadata.name")]
    Nameless { path: PathBuf },
}

/// All that the files say.
#[derive(Debug, Default)]
pub(super) struct Manifests {
    pub(super) pods: BTreeMap<Name, Pod>,
    pub(super) services: BTreeMap<Name, Service>,
    pub(super) slices: BTreeMap<Name, EndpointSlice>,
    pub(super) accounts: BTreeSet<Name>,
    pub(super) secrets: Secrets,
}

/// The data of Secrets. Does not show it.
#[derive(Default)]
pub(super) struct Secrets(pub(super) BTreeMap<Name, BTreeMap<String, Vec<u8>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Tells whether the files have changed.
#[derive(Debug)]
pub(super) struct Fingerprint {
    stamps: Vec<(PathBuf, u64, SystemTime)>,
    content: Vec<u8>,
}

/// One look at the files.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) fingerprint: Fingerprint,
    /// What they say; none when that is what they said before.
    pub(super) manifests: Option<Result<Manifests, LoadError>>,
}

/// Looks at a file or directory. Blocks.
pub(super) fn scan(path: &Path, before: Option<Fingerprint>) -> Scan {
    let stamps = list(path).and_then(|files| files.into_iter().map(stamp).collect::<Result<Vec<_>, _>>());
    if let (Ok(stamps), Some(before)) = (&stamps, &before) {
        let quiet = |(_, _, at): &(PathBuf, u64, SystemTime)| at.elapsed().is_ok_and(|age| age > RECENT);
        if !stamps.is_empty() && *stamps == before.stamps && stamps.iter().all(quiet) {
            let fingerprint = Fingerprint { stamps: stamps.clone(), content: before.content.clone() };
            return Scan { fingerprint, manifests: None };
        }
    }
    let texts = stamps.and_then(|stamps| {
        let texts: Result<Vec<String>, _> = stamps.iter().map(|(file, ..)| read(file)).collect();
        texts.map(|texts| (stamps, texts))
    });
    let (stamps, texts, error) = match texts {
        Ok((stamps, texts)) => (stamps, texts, None),
        Err(error) => (Vec::new(), vec![error.to_string()], Some(error)),
    };
    let content = digest(&stamps, &texts);
    let manifests = match error {
        _ if before.is_some_and(|before| before.content == content) => None,
        Some(error) => Some(Err(error)),
        None => Some(parse(&stamps, &texts)),
    };
    Scan { fingerprint: Fingerprint { stamps, content }, manifests }
}

fn list(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries: Result<Vec<PathBuf>, _> =
        std::fs::read_dir(path).map_err(failed)?.map(|e| e.map(|e| e.path())).collect();
    let mut files = entries.map_err(failed)?;
    let hidden = |file: &PathBuf| file.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
    let manifest = |file: &PathBuf| matches!(file.extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"));
    files.retain(|file| manifest(file) && !hidden(file));
    files.sort();
    Ok(files)
}

fn stamp(file: PathBuf) -> Result<(PathBuf, u64, SystemTime), LoadError> {
    let stat = std::fs::metadata(&file).and_then(|m| Ok((m.len(), m.modified()?)));
    match stat {
        Ok((length, at)) => Ok((file, length, at)),
        Err(source) => Err(LoadError::Read { path: file, source }),
    }
}

fn read(file: &Path) -> Result<String, LoadError> {
    let text = std::fs::read_to_string(file).map_err(|source| LoadError::Read { path: file.to_owned(), source })?;
    if text.trim().is_empty() {
        return Err(LoadError::Empty { path: file.to_owned() });
    }
    Ok(text)
}

fn digest(stamps: &[(PathBuf, u64, SystemTime)], texts: &[String]) -> Vec<u8> {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let files = stamps.iter().map(|(file, ..)| file.as_os_str().as_encoded_bytes());
    for part in files.chain(texts.iter().map(String::as_bytes)) {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finish().as_ref().to_vec()
}

fn parse(stamps: &[(PathBuf, u64, SystemTime)], texts: &[String]) -> Result<Manifests, LoadError> {
    let mut manifests = Manifests::default();
    for ((file, ..), text) in stamps.iter().zip(texts) {
        for document in documents(file, text)? {
            manifests.add(file, document)?;
        }
    }
    Ok(manifests)
}

/// Splits a file into documents. A file of many pods is larger than what the YAML reader takes from strangers.
fn documents(file: &Path, text: &str) -> Result<Vec<Value>, LoadError> {
    if file.extension().is_some_and(|e| e == "json") {
        let all: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
        return all.map_err(|source| LoadError::Json { path: file.to_owned(), source });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_documents: 1_000_000, max_nodes: 100_000_000, max_events: 400_000_000 },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|e| LoadError::Yaml { path: file.to_owned(), source: Box::new(e) })
}

impl Manifests {
    fn add(&mut self, file: &Path, document: Value) -> Result<(), LoadError> {
        let kind = document.get("kind").and_then(Value::as_str).map(str::to_owned);
        let Some(kind) = kind else { return Err(LoadError::Nameless { path: file.to_owned() }) };
        if let Some(item_kind) = kind.strip_suffix("List") {
            let items = document.get("items").and_then(Value::as_array);
            return items.into_iter().flatten().try_for_each(|item| self.add_item(file, item_kind, item.clone()));
        }
        match kind.as_str() {
            "Pod" => {
                let mut pod: Pod = object(file, &kind, document)?;
                let name = complete(file, &mut pod.metadata)?;
                pod.metadata.uid.get_or_insert_with(|| pod_uid(&name.0, &name.1).to_string());
                self.pods.insert(name, pod);
            }
            "Service" => {
                let mut service: Service = object(file, &kind, document)?;
                self.services.insert(complete(file, &mut service.metadata)?, service);
            }
            "EndpointSlice" => {
                let mut slice: EndpointSlice = object(file, &kind, document)?;
                self.slices.insert(complete(file, &mut slice.metadata)?, slice);
            }
            "ServiceAccount" => {
                let mut account: ServiceAccount = object(file, &kind, document)?;
                self.accounts.insert(complete(file, &mut account.metadata)?);
            }
            "Secret" => {
                let mut secret: Secret = object(file, &kind, document)?;
                let data = secret.data.take().into_iter().flatten().map(|(key, value)| (key, value.0));
                let texts = secret.string_data.take().into_iter().flatten();
                let all = data.chain(texts.map(|(key, text)| (key, text.into_bytes()))).collect();
                self.secrets.0.insert(complete(file, &mut secret.metadata)?, all);
            }
            _ => tracing::debug!(kind, file = %file.display(), "this kind is of no concern here"),
        }
        Ok(())
    }

    /// An item of a `PodList` need not say that it is a pod.
    fn add_item(&mut self, file: &Path, kind: &str, mut item: Value) -> Result<(), LoadError> {
        if let Value::Object(fields) = &mut item
            && !kind.is_empty()
        {
            fields.entry("kind").or_insert_with(|| kind.into());
        }
        self.add(file, item)
    }
}

fn object<T: DeserializeOwned>(file: &Path, kind: &str, document: Value) -> Result<T, LoadError> {
    serde_json::from_value(document).map_err(|source| LoadError::Object {
        path: file.to_owned(),
        kind: kind.to_owned(),
        source,
    })
}

/// Fills in the namespace.
fn complete(file: &Path, meta: &mut ObjectMeta) -> Result<Name, LoadError> {
    let namespace = meta.namespace.get_or_insert_with(|| "default".to_owned()).clone();
    let name = meta.name.clone().filter(|name| !name.is_empty());
    name.map(|name| (namespace, name)).ok_or_else(|| LoadError::Nameless { path: file.to_owned() })
}
