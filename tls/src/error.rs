//! What can go wrong with certificates and keys, told apart by what the reader can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure to read, make or use a certificate or key.
///
/// No variant carries key material; texts name files and reasons only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read: wrong path or missing permission.
    #[error("cannot read {path}: {source}", path = path.display())]
    ReadFile {
        /// The file as it was configured.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Something that was read holds the wrong thing: fix the file.
    #[error("{origin}: {reason}")]
    Invalid {
        /// The file, or what else the text came from.
        origin: String,
        /// What is wrong with it, and what it has to be.
        reason: String,
    },
    /// The private key belongs to another certificate: configure the pair that belongs together.
    #[error(
        "the private key in {key} does not belong to the certificate in {certificate}; \
         configure the key that the certificate was made for, with the server's own certificate first in its file"
    )]
    KeyMismatch {
        /// Where the certificate came from.
        certificate: String,
        /// Where the key came from.
        key: String,
    },
    /// A peer's certificate does not carry a usable identity of the cluster port.
    #[error("not a certificate of the cluster port: {0}")]
    PeerIdentity(String),
    /// A certificate request cannot be signed.
    #[error("certificate request refused: {0}")]
    Request(String),
    /// A certificate or key could not be generated.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// rustls refused a configuration, or a connection cannot give what was asked of it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl Error {
    pub(crate) fn read_file(path: &Path, source: io::Error) -> Error {
        Error::ReadFile { path: path.to_owned(), source }
    }

    pub(crate) fn invalid(origin: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { origin: origin.into(), reason: reason.into() }
    }
}
