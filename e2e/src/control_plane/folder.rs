//! The temporary folder of one control plane, removed on drop. A test binary that keeps its control plane in a static, or is
//! killed, never drops it; so each start removes the folders whose owner is gone, told by the lock that a live one holds.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

const PREFIX: &str = "podlight-control-plane.";
const LOCK_FILE: &str = "owner.lock";
/// Between making a folder and holding its lock another process may look at it; younger ones are left alone.
const MINIMUM_AGE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Folder {
    folder: TempDir,
    _lock: File,
}

impl Folder {
    pub(super) fn create() -> Result<Self> {
        remove_abandoned();
        // It holds an administrator's token.
        let private = Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir();
        let folder = folder.context("cannot make a temporary folder")?;
        let lock = File::create(folder.path().join(LOCK_FILE))?;
        lock.try_lock()?;
        Ok(Self { folder, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Best effort: what cannot be looked at or removed stays.
fn remove_abandoned() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|at| at.elapsed().unwrap_or_default());
        let abandoned = age.is_ok_and(|age| age > MINIMUM_AGE)
            && File::open(entry.path().join(LOCK_FILE)).is_ok_and(|lock| lock.try_lock().is_ok());
        if abandoned {
            // Another process may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
