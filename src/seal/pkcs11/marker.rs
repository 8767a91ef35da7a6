//! Remembers, over restarts, the PIN that a token refused: a node that is started again and again must not lock it.
//!
//! A file of the data directory, one per seal: a salt `[16]`, then the HMAC-SHA256 of serial number and PIN under it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use crate::barrier::Mac;
use crate::secret::{SecretString, random_array};

const SALT_LEN: usize = 16;

/// The refused PINs of one seal.
pub(super) struct Refused {
    /// `None` where there is no data directory; then it is remembered while the process lives.
    path: Option<PathBuf>,
    marker: Mutex<Option<Vec<u8>>>,
}

impl Refused {
    pub(super) fn of(data_dir: Option<&Path>, seal_name: &str) -> Self {
        let path = data_dir.map(|dir| dir.join(format!("refused-pin-{seal_name}")));
        Self { path, marker: Mutex::new(None) }
    }

    /// Whether the token of that serial number refused this very PIN.
    ///
    /// # Errors
    /// There is a record, and it cannot be read: taken for none, every start would try the PIN.
    pub(super) fn has(&self, serial: &str, pin: &SecretString) -> io::Result<bool> {
        let of_file = match self.path.as_ref().map(|path| (path, fs::read(path))) {
            Some((path, Err(error))) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
            Some((_, read)) => read.ok(),
            None => None,
        };
        let kept = self.marker.lock().clone();
        Ok(of_file.into_iter().chain(kept).any(|marker| match marker.split_first_chunk::<SALT_LEN>() {
            Some((salt, tag)) => tag.ct_eq(&tag_of(salt, serial, pin)).into(),
            None => false,
        }))
    }

    /// Writes down that it did.
    ///
    /// # Errors
    /// The file could not be written; the process still remembers.
    pub(super) fn note(&self, serial: &str, pin: &SecretString) -> io::Result<()> {
        let salt: [u8; SALT_LEN] = random_array();
        let marker = [salt.as_slice(), &tag_of(&salt, serial, pin)].concat();
        *self.marker.lock() = Some(marker.clone());
        let Some(path) = &self.path else { return Ok(()) };
        let temporary = path.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&marker)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // A name that is lost with the power would cost one more attempt.
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Forgets, after a PIN was taken or when somebody wants it tried again.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub(super) fn clear(&self) -> io::Result<()> {
        *self.marker.lock() = None;
        match self.path.as_ref().map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What somebody does to have the same PIN tried again.
    pub(super) fn remedy(&self) -> String {
        match &self.path {
            Some(path) => {
                format!("correct the PIN, or remove {} to have this one tried again", path.display())
            }
            None => "correct the PIN".to_owned(),
        }
    }
}

fn tag_of(salt: &[u8], serial: &str, pin: &SecretString) -> [u8; 32] {
    Mac::new(salt, "keystead/v1/refused-pin").field(serial.as_bytes()).field(pin.expose().as_bytes()).finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_refused_pin_is_known_after_a_restart_and_no_other_is() {
        let directory = tempfile::tempdir().unwrap();
        let pin = |text: &str| SecretString::new(text.to_owned());
        let refused = Refused::of(Some(directory.path()), "hsm");
        assert!(!refused.has("s1", &pin("9999")).unwrap());
        refused.note("s1", &pin("9999")).unwrap();
        let restarted = Refused::of(Some(directory.path()), "hsm");
        assert!(restarted.has("s1", &pin("9999")).unwrap());
        assert!(!restarted.has("s1", &pin("1234")).unwrap() && !restarted.has("s2", &pin("9999")).unwrap());
        assert!(!Refused::of(Some(directory.path()), "other").has("s1", &pin("9999")).unwrap());
        let path = directory.path().join("refused-pin-hsm");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(4).any(|window| window == b"9999"));
        restarted.clear().unwrap();
        restarted.clear().unwrap();
        fs::create_dir(&path).unwrap();
        assert!(restarted.has("s1", &pin("1234")).is_err(), "a record that cannot be read is not none");
        fs::remove_dir(&path).unwrap();
        assert!(!restarted.has("s1", &pin("9999")).unwrap());
    }

    #[test]
    fn without_a_directory_it_is_remembered_while_the_process_lives() {
        let refused = Refused::of(None, "hsm");
        let pin = SecretString::new("9999".to_owned());
        refused.note("s1", &pin).unwrap();
        assert!(refused.has("s1", &pin).unwrap());
    }
}
