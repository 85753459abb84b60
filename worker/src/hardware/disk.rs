//! The disk that holds the models: in goes a path, out go the size and the free space of the file system that it is on.
//! It never writes, and the path need not exist yet.

use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Finding;

/// The file system that a path is on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Disk)]
pub struct Disk {
    /// The path that was asked about, from the root.
    pub path: String,
    /// Size of the file system.
    pub total_bytes: u64,
    /// What this user may still write, without the part that is kept for the administrator.
    pub free_bytes: u64,
}

/// The file system that `path` is or would be on.
///
/// # Errors
/// A finding when the system does not tell.
pub fn at(path: &Path) -> Result<Disk, Finding> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = path.ancestors().find(|part| part.exists()).unwrap_or(&path);
    let (total_bytes, free_bytes) = space(existing).map_err(|reason| {
        Finding::warning("disk.unknown", format!("{}: free space is not known: {reason}", path.display()))
            .with_remedy("check that the path can be read, or choose another storage path")
    })?;
    Ok(Disk { path: path.display().to_string(), total_bytes, free_bytes })
}

#[cfg(unix)]
fn space(path: &Path) -> Result<(u64, u64), String> {
    let answer = rustix::fs::statvfs(path).map_err(|error| error.to_string())?;
    Ok((answer.f_blocks.saturating_mul(answer.f_frsize), answer.f_bavail.saturating_mul(answer.f_frsize)))
}

#[cfg(not(unix))]
fn space(path: &Path) -> Result<(u64, u64), String> {
    let disks = sysinfo::Disks::new_with_refreshed_list().map_err(|error| format!("{error:?}"))?;
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    let plain = |path: &Path| path.display().to_string().trim_start_matches(r"\\?\").to_lowercase();
    disks
        .iter()
        .filter(|disk| plain(&path).starts_with(&plain(disk.mount_point())))
        .max_by_key(|disk| disk.mount_point().as_os_str().len())
        .map(|disk| (disk.total_space(), disk.available_space()))
        .ok_or_else(|| "no disk is mounted there".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_there_yet_is_on_the_disk_of_the_folder_above_it() {
        let folder = tempfile::tempdir().unwrap();
        let there = at(folder.path()).unwrap();
        let later = at(&folder.path().join("models/not/made/yet")).unwrap();
        assert!(there.total_bytes > 0 && there.free_bytes <= there.total_bytes, "{there:?}");
        assert_eq!(later.total_bytes, there.total_bytes);
        assert!(later.path.ends_with("yet"));
    }
}
