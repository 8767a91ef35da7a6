//! What can go wrong with a disk, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A failure of the storage of this node.
///
/// Cloneable, for one failed sync fails every append of its group.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused; the node must stop acknowledging.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The error of the operating system.
        source: Arc<io::Error>,
    },
    /// The disk is full; free space and start again.
    #[error("no space left for {}: {free_bytes} bytes free; free space on that file system or enlarge it, then start this node again", path.display())]
    Full {
        /// Where space is missing.
        path: PathBuf,
        /// Bytes free there when it was noticed.
        free_bytes: u64,
    },
    /// What is on the disk is not what was written there.
    #[error("{what}; {remedy}")]
    Damaged {
        /// What is damaged.
        what: String,
        /// What an operator can do.
        remedy: String,
    },
    /// A newer release wrote this; run that release.
    #[error("{} has format {found}, this release knows up to {known}; run the release that wrote it, or a newer one", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// Another process holds the data directory.
    #[error("data directory {} is in use by another process; stop it or choose another path", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// More than this storage takes; nothing was changed.
    #[error("{what} is {size}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size, in the unit that `what` names.
        size: u64,
        /// The limit in the same unit.
        limit: u64,
    },
    /// Only one at a time, and one is under way; try again later.
    #[error("{what} is under way")]
    Busy {
        /// What is under way.
        what: String,
    },
    /// An earlier failure stopped this storage for good; nothing was changed since.
    #[error("storage stopped after an earlier failure: {first}")]
    Latched {
        /// The first failure, as text.
        first: String,
    },
}

/// The remedy for damage that a replica heals best.
pub const REBUILD: &str = "rebuild this node from its peers: stop it, run `keystead operator raft rebuild` with its -config, start it again";

impl StorageError {
    /// Wraps an I/O error with what was being done.
    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        StorageError::Io { context: context.into(), source: Arc::new(source) }
    }

    /// Damage whose remedy is to rebuild the node from its peers.
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        StorageError::Damaged { what: what.into(), remedy: REBUILD.to_owned() }
    }

    /// Names the place of damage, unless the text does so already.
    pub(crate) fn found_in(self, place: &Path) -> Self {
        match self {
            StorageError::Damaged { what, remedy } if !what.contains(&*place.to_string_lossy()) => {
                StorageError::Damaged { what: format!("{}: {what}", place.display()), remedy }
            }
            other => other,
        }
    }
}
