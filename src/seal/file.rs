//! A seal whose key lies in a file: for development and for tests. It protects nothing, for whoever has the disk has the
//! file as well; what it is good for is to show how a node starts that nobody has to open.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use keystead_raft::BoxFuture;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::auto::{AutoSeal, SealFault, SealReport, SealedKek};
use super::config::SealKind;
use crate::secret::{Kek, SecretBytes, fill_random, on_wiped_stack, random_array};

/// `format[1] nonce[12] ciphertext[32] tag[16]`.
const FORMAT: u8 = 1;
const BLOB_LEN: usize = 1 + 12 + 32 + 16;
/// The key in hexadecimal, and a newline.
const FILE_LEN: usize = 65;

/// A seal whose key lies in a file.
pub struct FileSeal {
    name: String,
    path: PathBuf,
}

impl FileSeal {
    /// The seal of that name with its key at `path`, which is made when something is first encrypted.
    #[must_use]
    pub fn new(name: &str, path: &Path) -> Self {
        Self { name: name.to_owned(), path: path.to_owned() }
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    fn key(&self) -> Result<Kek, SealFault> {
        let shown = self.shown();
        let unreadable = |error: io::Error| {
            SealFault::Unavailable(format!("the key file {shown} cannot be read ({error}); put it back"))
        };
        let mode = fs::metadata(&self.path).map_err(unreadable)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(SealFault::NeedsOperator(format!(
                "the key file {shown} is open to others (mode {:o}); chmod 600 it",
                mode & 0o777
            )));
        }
        let text = fs::read(&self.path).map(Zeroizing::new).map_err(unreadable)?;
        let digits = text.trim_ascii_end();
        let mut decoded = Ok(());
        let key = Kek::filled(|key| decoded = hex::decode_to_slice(digits, key));
        decoded.map(|()| key).map_err(|_| {
            SealFault::NeedsOperator(format!(
                "the key file {shown} does not hold 64 hexadecimal digits; put the right one there"
            ))
        })
    }

    /// Makes the key where there is none.
    fn key_or_new(&self) -> Result<Kek, SealFault> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path);
        match made {
            Ok(mut file) => {
                let mut key = Zeroizing::new([0; 32]);
                fill_random(&mut *key);
                let mut text = Zeroizing::new([b'\n'; FILE_LEN]);
                hex::encode_to_slice(*key, &mut text[..64]).expect("two digits a byte");
                let written = file.write_all(&*text).and_then(|()| file.sync_all());
                written.map_err(|error| {
                    SealFault::Unavailable(format!(
                        "the key file {} cannot be written ({error})",
                        self.shown()
                    ))
                })?;
                tracing::warn!(path = self.shown(), "a seal's key was made in a file: for development only");
                Ok(Kek::from_bytes(&key))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.key(),
            Err(error) => {
                Err(SealFault::Unavailable(format!("the key file {} cannot be made ({error})", self.shown())))
            }
        }
    }

    fn encrypt_now(&self, kek: &Kek, aad: &[u8]) -> Result<SealedKek, SealFault> {
        let key = self.key_or_new()?;
        let nonce: [u8; 12] = random_array();
        let mut text = Zeroizing::new(*kek.expose());
        let tag = cipher(&key)
            .encrypt_inout_detached(&nonce.into(), aad, text.as_mut_slice().into())
            .expect("a key is far below the 64 GiB of RFC 8452");
        let blob = [&[FORMAT][..], &nonce, &*text, &tag].concat();
        let sealed = SealedKek { key_id: key_id(&key), blob };
        match self.decrypt_now(&sealed, aad) {
            Ok(again) if again.ct_eq(kek) => Ok(sealed),
            Ok(_) | Err(_) => {
                Err(SealFault::Unavailable(format!("the key file {} was replaced meanwhile", self.shown())))
            }
        }
    }

    fn decrypt_now(&self, sealed: &SealedKek, aad: &[u8]) -> Result<Kek, SealFault> {
        let key = self.key()?;
        let not_ours =
            || SealFault::NotOurs(format!("the root key was not wrapped with the key in {}", self.shown()));
        let blob: &[u8; BLOB_LEN] = sealed.blob.as_slice().try_into().map_err(|_| not_ours())?;
        let (nonce, rest) = blob[1..].split_first_chunk::<12>().expect("the length was checked");
        let (text, tag) = rest.split_last_chunk::<16>().expect("the length was checked");
        if blob[0] != FORMAT {
            return Err(not_ours());
        }
        let mut opened = Ok(());
        let kek = Kek::filled(|kek| {
            kek.copy_from_slice(text);
            opened = cipher(&key).decrypt_inout_detached(
                &(*nonce).into(),
                aad,
                kek.as_mut_slice().into(),
                tag.into(),
            );
        });
        opened.map(|()| kek).map_err(|_| not_ours())
    }
}

fn cipher(key: &Kek) -> Aes256GcmSiv {
    Aes256GcmSiv::new_from_slice(key.expose()).expect("the key has 32 bytes")
}

/// Names the key without giving it away.
fn key_id(key: &Kek) -> String {
    let digest =
        Sha256::new().chain_update(b"keystead/v1/file-seal-key\0").chain_update(key.expose()).finalize();
    hex::encode(&digest[..8])
}

impl AutoSeal for FileSeal {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SealKind {
        SealKind::File
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn encrypt<'a>(&'a self, kek: &'a Kek, aad: &'a [u8]) -> BoxFuture<'a, Result<SealedKek, SealFault>> {
        Box::pin(std::future::ready(on_wiped_stack(|| self.encrypt_now(kek, aad))))
    }

    fn decrypt<'a>(&'a self, sealed: &'a SealedKek, aad: &'a [u8]) -> BoxFuture<'a, Result<Kek, SealFault>> {
        Box::pin(std::future::ready(on_wiped_stack(|| self.decrypt_now(sealed, aad))))
    }

    fn random(&self, _len: usize) -> BoxFuture<'_, Result<Option<SecretBytes>, SealFault>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn report(&self) -> BoxFuture<'_, Result<SealReport, SealFault>> {
        let description = format!("key file {}, for development only: it protects nothing", self.shown());
        let found = match self.path.try_exists() {
            Ok(false) => Ok(String::new()),
            Ok(true) | Err(_) => self.key().map(|key| key_id(&key)),
        };
        Box::pin(std::future::ready(found.map(|key_id| SealReport { description, key_id })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> (tempfile::TempDir, FileSeal) {
        let dir = tempfile::tempdir().unwrap();
        let seal = FileSeal::new("file", &dir.path().join("key"));
        (dir, seal)
    }

    #[test]
    fn what_it_encrypts_it_decrypts_for_the_same_fields_only() {
        let (_dir, seal) = seal();
        let kek = Kek::random();
        let sealed = seal.encrypt_now(&kek, b"fields").unwrap();
        assert!(seal.decrypt_now(&sealed, b"fields").unwrap().ct_eq(&kek));
        assert!(matches!(seal.decrypt_now(&sealed, b"other"), Err(SealFault::NotOurs(_))));
        for at in 0..sealed.blob.len() {
            let mut changed = sealed.clone();
            changed.blob[at] ^= 1;
            assert!(matches!(seal.decrypt_now(&changed, b"fields"), Err(SealFault::NotOurs(_))), "byte {at}");
        }
        assert_eq!(fs::metadata(&seal.path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_gone_may_come_back_and_one_that_is_wrong_needs_somebody() {
        let (dir, seal) = seal();
        let sealed = seal.encrypt_now(&Kek::random(), b"").unwrap();
        let aside = dir.path().join("aside");
        fs::rename(&seal.path, &aside).unwrap();
        assert!(matches!(seal.decrypt_now(&sealed, b""), Err(SealFault::Unavailable(_))));
        fs::rename(&aside, &seal.path).unwrap();
        assert!(seal.decrypt_now(&sealed, b"").is_ok());
        fs::set_permissions(&seal.path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(seal.decrypt_now(&sealed, b""), Err(SealFault::NeedsOperator(_))));
        fs::set_permissions(&seal.path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&seal.path, "short").unwrap();
        assert!(matches!(seal.decrypt_now(&sealed, b""), Err(SealFault::NeedsOperator(_))));
        fs::remove_file(&seal.path).unwrap();
        seal.encrypt_now(&Kek::random(), b"").unwrap();
        assert!(matches!(seal.decrypt_now(&sealed, b""), Err(SealFault::NotOurs(_))));
    }
}
