//! A small file that somebody else replaces now and then, as projected volumes do by swapping a symbolic link.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Longest file that is read: far above a token or a bundle of certificates.
const MAX_BYTES: u64 = 1 << 20;

/// A file read again only when it is another one. Looking costs one `stat`.
#[derive(Debug)]
pub(crate) struct WatchedFile {
    path: PathBuf,
    seen: Option<Result<Fingerprint, io::ErrorKind>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl WatchedFile {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), seen: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds, when that is not what was there at the last look. An error is reported once, too.
    pub(crate) fn changed(&mut self) -> Option<io::Result<Vec<u8>>> {
        let metadata = std::fs::metadata(&self.path);
        let found = metadata.as_ref().map(Fingerprint::of).map_err(io::Error::kind);
        if self.seen == Some(found) {
            return None;
        }
        self.seen = Some(found);
        Some(metadata.and_then(|_| self.read()))
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
        }
        Ok(bytes)
    }
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), len: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}
