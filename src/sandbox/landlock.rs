//! Landlock: of all files, only our own sockets can still be removed; no TCP port can be used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus,
};

/// The newest rules that we know. An older kernel enforces those of them that it knows.
const RULES: ABI = ABI::V5;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Rules(#[from] RulesetError),
    #[error(transparent)]
    Folder(#[from] PathFdError),
}

/// Leaves nothing of the file system but the removal of files beside `sockets`.
pub(super) fn restrict(sockets: &[PathBuf]) -> Result<(), String> {
    match try_restrict(sockets) {
        Ok(RulesetStatus::NotEnforced) => Err("this kernel has none".to_owned()),
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn try_restrict(sockets: &[PathBuf]) -> Result<RulesetStatus, Error> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RULES))?
        .handle_access(AccessNet::from_all(RULES))?
        .create()?;
    let folders: BTreeSet<&Path> = sockets.iter().map(|socket| folder(socket)).collect();
    for folder in folders {
        rules = rules.add_rule(PathBeneath::new(PathFd::new(folder)?, AccessFs::RemoveFile))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

/// The folder of a file.
fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_lies_in_the_working_folder() {
        assert_eq!(folder(Path::new("iommu.sock")), Path::new("."));
        assert_eq!(folder(Path::new("run/iommu.sock")), Path::new("run"));
        assert_eq!(folder(Path::new("/iommu.sock")), Path::new("/"));
    }
}
