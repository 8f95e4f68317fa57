//! `podlight-activator inject`: reads manifests and prints them with the sidecar. It asks no cluster: opting in is running
//! it. Nothing is printed unless everything could be read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args as ArgGroup;

use super::manifests::{self, Output};
use super::settings::InjectionArgs;
use crate::config::{EXIT_CONFIG, Faults};

/// Most that is read in all: Kubernetes takes 3 MiB an object.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Exit codes besides 64, as sysexits.h has them: `EX_DATAERR`, `EX_NOINPUT` and `EX_IOERR`.
const EXIT_DATA: u8 = 65;
const EXIT_INPUT: u8 = 66;
const EXIT_OUTPUT: u8 = 74;

/// Adds the sidecar to Pods, Deployments, StatefulSets, DaemonSets, Jobs, CronJobs and Lists of them, and prints the manifests;
/// what is of another kind is printed as it is. What is left without a sidecar is told on stderr. Exit codes: 0 printed,
/// 64 a flag cannot be used, 65 a manifest or an annotation in it cannot, 66 a file cannot be read, 74 the output cannot be
/// written. With anything but 0 nothing has been printed, or not everything.
#[derive(Debug, ArgGroup)]
pub struct InjectArgs {
    /// A file of manifests, YAML or JSON; - is stdin. Repeat for more.
    #[arg(long = "filename", short = 'f', required = true)]
    files: Vec<PathBuf>,
    /// The namespace of manifests that name none.
    #[arg(long, short)]
    namespace: Option<String>,
    #[command(flatten)]
    injection: InjectionArgs,
}

/// Why manifests were not injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// Flags.
    #[error(transparent)]
    Config(#[from] Faults),
    /// No input.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too much of it.
    #[error("there is more than {} MiB of manifests", MAX_BYTES >> 20)]
    TooLarge,
    /// Manifests that cannot be used.
    #[error("{} cannot be used, nothing is printed:\n{faults}", .path.display())]
    Manifests {
        /// In which file.
        path: PathBuf,
        /// All that is wrong with them.
        faults: manifests::Faults,
    },
    /// No output.
    #[error("cannot write")]
    Write(#[from] io::Error),
}

impl InjectError {
    /// The status of the process.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => EXIT_CONFIG,
            Self::Read { .. } => EXIT_INPUT,
            Self::TooLarge | Self::Manifests { .. } => EXIT_DATA,
            Self::Write(_) => EXIT_OUTPUT,
        }
    }
}

/// Reads, injects and prints.
///
/// # Errors
/// [`InjectError`].
pub fn run(
    args: &InjectArgs,
    mut stdin: impl Read,
    mut out: impl Write,
    mut notes: impl Write,
) -> Result<(), InjectError> {
    let mut faults = Faults::default();
    let settings = args.injection.check(&mut faults);
    let settings = faults.or(settings)?;
    let mut left = MAX_BYTES;
    let mut outputs = Vec::new();
    for path in &args.files {
        let text = read(path, &mut stdin, left)?;
        left = left.checked_sub(text.len() as u64).ok_or(InjectError::TooLarge)?;
        let injected = manifests::inject(&text, args.namespace.as_deref(), &settings);
        outputs.push(injected.map_err(|faults| InjectError::Manifests { path: path.clone(), faults })?);
    }
    for note in outputs.iter().flat_map(|output| &output.notes) {
        writeln!(notes, "podlight-activator: {note}")?;
    }
    out.write_all(join(&outputs).as_bytes())?;
    Ok(out.flush()?)
}

/// At most one byte more than `left`, which tells that there is more.
fn read(path: &Path, stdin: &mut impl Read, left: u64) -> Result<String, InjectError> {
    let mut text = String::new();
    let result = if path == Path::new("-") {
        stdin.take(left + 1).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(left + 1).read_to_string(&mut text))
    };
    result.map(|_| text).map_err(|source| InjectError::Read { path: path.to_owned(), source })
}

fn join(outputs: &[Output]) -> String {
    let mut all = String::new();
    for Output { text, .. } in outputs.iter().filter(|output| !output.text.trim().is_empty()) {
        if !all.is_empty() {
            if !all.ends_with('\n') {
                all.push('\n');
            }
            if !text.starts_with("---") {
                all.push_str("---\n");
            }
        }
        all.push_str(text);
    }
    all
}
