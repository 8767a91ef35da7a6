//! Remembers, over restarts, that a token refused a PIN: a node that is started again and again must not lock it.
//!
//! A file of the data directory, one per seal, in words: that it is such a record, the token's serial number, and the time.
//! Nothing in it comes from the PIN. Whatever could tell on the disk whether a PIN is the refused one could tell the same to
//! whoever holds the disk, for each of the ten thousand PINs of four digits, at any price of one guess; and what came from
//! where the PIN is kept (a file's time, say) would change with every start where that is written anew for each. So after
//! a restart no PIN is tried before somebody asks for it; only a process that has the refused one in its memory knows another
//! when it reads one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use crate::barrier::Mac;
use crate::secret::{SecretString, random_array};

/// The first line of a record.
const HEAD: &str = "keystead refused-pin 2";

/// The refused PINs of one seal.
pub(super) struct Refused {
    seal_name: String,
    /// `None` where there is no data directory; then it is remembered while the process lives.
    path: Option<PathBuf>,
    /// Of this process, which ends with it.
    key: [u8; 32],
    marker: Mutex<Option<Marker>>,
}

/// What this process has seen refused.
struct Marker {
    serial: String,
    tag: [u8; 32],
}

impl Refused {
    pub(super) fn of(data_dir: Option<&Path>, seal_name: &str) -> Self {
        let path = data_dir.map(|dir| dir.join(format!("refused-pin-{seal_name}")));
        Self { seal_name: seal_name.to_owned(), path, key: random_array(), marker: Mutex::new(None) }
    }

    /// Whether the token of that serial number may have refused this very PIN.
    ///
    /// # Errors
    /// There is a record, and it cannot be read: taken for none, every start would try the PIN.
    pub(super) fn has(&self, serial: &str, pin: &SecretString) -> io::Result<bool> {
        if let Some(marker) = self.marker.lock().as_ref().filter(|marker| marker.serial == serial) {
            return Ok(marker.tag.ct_eq(&self.tag_of(serial, pin)).into());
        }
        let Some(path) = &self.path else { return Ok(false) };
        match fs::read_to_string(path) {
            Ok(text) => {
                let mut lines = text.lines();
                // Another format's record is about some token, and so about this one.
                Ok(lines.next() != Some(HEAD) || lines.next() == Some(&format!("serial {serial}")))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }

    /// Writes down that it did.
    ///
    /// # Errors
    /// The file could not be written; the process still remembers.
    pub(super) fn note(&self, serial: &str, pin: &SecretString) -> io::Result<()> {
        let tag = self.tag_of(serial, pin);
        *self.marker.lock() = Some(Marker { serial: serial.to_owned(), tag });
        let Some(path) = &self.path else { return Ok(()) };
        let temporary = path.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let now_s = keystead_raft::clock::wall_ms() / 1000;
        file.write_all(format!("{HEAD}\nserial {serial}\nunix time {now_s}\n").as_bytes())?;
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

    /// What somebody does to have a PIN tried again.
    pub(super) fn remedy(&self) -> String {
        match &self.path {
            Some(path) => format!(
                "correct the PIN, then have it tried once with `keystead hsm status -config=... -seal={} -retry-pin`, or \
                 remove {}; a node that was started with the wrong one in its configuration is started again after that",
                self.seal_name,
                path.display()
            ),
            None => "correct the PIN".to_owned(),
        }
    }

    fn tag_of(&self, serial: &str, pin: &SecretString) -> [u8; 32] {
        let mac = Mac::new(&self.key, "keystead/v1/refused-pin");
        mac.field(serial.as_bytes()).field(pin.expose().as_bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn after_a_restart_no_pin_is_tried_on_a_token_that_refused_one() {
        let directory = tempfile::tempdir().unwrap();
        let pin = |text: &str| SecretString::new(text.to_owned());
        let refused = Refused::of(Some(directory.path()), "hsm");
        assert!(!refused.has("s1", &pin("9999")).unwrap());
        refused.note("s1", &pin("9999")).unwrap();
        // The process that saw it knows another PIN for another; the next one knows nothing but the token.
        assert!(refused.has("s1", &pin("9999")).unwrap() && !refused.has("s1", &pin("1234")).unwrap());
        let restarted = Refused::of(Some(directory.path()), "hsm");
        assert!(restarted.has("s1", &pin("9999")).unwrap() && restarted.has("s1", &pin("1234")).unwrap());
        assert!(!restarted.has("s2", &pin("9999")).unwrap());
        assert!(!Refused::of(Some(directory.path()), "other").has("s1", &pin("9999")).unwrap());
        let path = directory.path().join("refused-pin-hsm");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // No byte of it depends on the PIN.
        let text = fs::read_to_string(&path).unwrap();
        let time = text.strip_prefix("keystead refused-pin 2\nserial s1\nunix time ").unwrap();
        assert!(time.trim_end().parse::<u64>().is_ok(), "{text}");
        fs::write(&path, b"of another format").unwrap();
        assert!(restarted.has("s2", &pin("9999")).unwrap(), "whatever it is about, it is a record");
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
