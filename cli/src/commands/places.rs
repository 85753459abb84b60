//! Where things are kept when nobody says where.

use std::path::PathBuf;

/// Keys, databases, results: `$XDG_DATA_HOME/neurogrid`, `~/.local/share/neurogrid`, or a folder of the working directory.
pub(crate) fn data(given: Option<PathBuf>) -> PathBuf {
    let named = || std::env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local").join("share"));
    let base = || named().or_else(home).map(|base| base.join("neurogrid"));
    given.or_else(base).unwrap_or_else(|| PathBuf::from("neurogrid-data"))
}
