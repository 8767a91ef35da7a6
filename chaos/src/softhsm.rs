//! SoftHSM, which stands for hardware: its module, and tokens in a directory of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::error::{Error, Result};

/// The PIN of every token made here.
pub const PIN: &str = "1234";
/// The security officer's PIN of every token made here.
pub const SO_PIN: &str = "87654321";

/// Where Debian and others put the module.
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
];

/// SoftHSM's module, if it is installed here.
pub fn module() -> Option<&'static Path> {
    MODULES.into_iter().map(Path::new).find(|path| path.exists())
}

/// Tokens, and the configuration of the module that sees them and no others.
pub struct Tokens {
    directory: PathBuf,
}

impl Tokens {
    /// None yet, in a directory that exists.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(directory: &Path) -> Result<Self> {
        let tokens = Self { directory: directory.to_owned() };
        fs::create_dir(tokens.store()).map_err(Error::io("making the place of tokens"))?;
        let conf =
            format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.store().display());
        fs::write(tokens.conf(), conf).map_err(Error::io("writing SoftHSM's configuration"))?;
        Ok(tokens)
    }

    /// Where the tokens lie, a directory each.
    pub fn store(&self) -> PathBuf {
        self.directory.join("tokens")
    }

    /// The module's configuration, which `SOFTHSM2_CONF` names to it.
    pub fn conf(&self) -> PathBuf {
        self.directory.join("softhsm2.conf")
    }

    /// Makes a token with [`PIN`] and [`SO_PIN`].
    ///
    /// # Errors
    /// [`Error::Broken`] with what `softhsm2-util` says.
    pub fn add(&self, label: &str) -> Result<()> {
        let made = Command::new("softhsm2-util")
            .env("SOFTHSM2_CONF", self.conf())
            .args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN])
            .output()
            .map_err(Error::io("running softhsm2-util"))?;
        if made.status.success() {
            Ok(())
        } else {
            Err(Error::Broken(format!("softhsm2-util: {}", String::from_utf8_lossy(&made.stderr).trim())))
        }
    }
}
