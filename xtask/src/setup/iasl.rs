//! ACPI's compiler, a second reader of the tables that we write: Debian 12's does not know VIOT.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::apt::Archive;
use super::bundle::{Bundle, Contents};
use super::cache::Cache;
use super::tree::Tree;
use crate::error::{Error, Result};

/// The compiler, for an amd64 host.
const AMD64: Bundle = Bundle {
    name: "iasl",
    lead: "acpica-tools",
    archive: archive("amd64"),
    contents: Contents::Closure(&["acpica-tools"]),
};

/// The same for an arm64 host.
const ARM64: Bundle = Bundle { name: "iasl-arm64-host", archive: archive("arm64"), ..AMD64 };

const fn archive(architecture: &'static str) -> Archive {
    Archive { suites: &["trixie"], prefer: None, architecture }
}

/// A script in `folder` that starts it.
///
/// # Errors
/// The packages cannot be had, or the script cannot be written.
pub(crate) fn bring(cache: &Cache, mirror: Option<&str>, folder: &Path) -> Result<PathBuf> {
    let bundle = if std::env::consts::ARCH == "aarch64" { ARM64 } else { AMD64 };
    let command = Tree::at(bundle.bring(cache, mirror)?)?.command("iasl", &[]);
    let mut script = "#!/bin/sh\nexec".to_owned();
    for word in std::iter::once(command.get_program()).chain(command.get_args()) {
        script.push(' ');
        script.push_str(&quoted(&word.to_string_lossy()));
    }
    script.push_str(" \"$@\"\n");
    let path = folder.join("iasl");
    fs::write(&path, script).map_err(Error::file("write", &path))?;
    let may_run = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&path, may_run).map_err(Error::file("change", &path))?;
    Ok(path)
}

/// One word of a shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_quotes_and_spaces_stays_one_word() {
        assert_eq!(quoted("it's a path"), r"'it'\''s a path'");
    }
}
