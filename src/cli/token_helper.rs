//! The token that `login` leaves for later commands: `~/.vault-token`, as Vault's own tools keep it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::environment::Environment;
use crate::client::Token;

/// The file that holds the token.
pub struct TokenHelper {
    path: PathBuf,
}

impl TokenHelper {
    /// The file in the user's home directory; `None` without `HOME`.
    pub fn of(environment: &Environment) -> Option<TokenHelper> {
        environment.home().map(|home| TokenHelper { path: home.join(".vault-token") })
    }

    /// Where the token is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stored token without the white space around it; `None` if there is no file or nothing in it.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn load(&self) -> io::Result<Option<Token>> {
        let mut text = Zeroizing::new(String::new());
        match fs::File::open(&self.path) {
            Ok(mut file) => file.read_to_string(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let token = text.trim();
        Ok((!token.is_empty()).then(|| Token::new(token)))
    }

    /// Stores a token, readable by its owner only, in place of any earlier one.
    ///
    /// The file is replaced as a whole: nobody reads half a token, and the mode of an earlier, looser file
    /// does not survive.
    ///
    /// # Errors
    /// What the file system says; the earlier token is then still there.
    pub fn store(&self, token: &Token) -> io::Result<()> {
        let beside = self.path.with_file_name(format!(".vault-token.{}", std::process::id()));
        let written = write_new(&beside, token).and_then(|()| fs::rename(&beside, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

fn write_new(path: &Path, token: &Token) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(token.expose().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_stored_for_its_owner_only_and_read_back() {
        let home = tempfile::tempdir().unwrap();
        let environment = Environment::default().with("HOME", home.path());
        let helper = TokenHelper::of(&environment).unwrap();
        assert!(helper.load().unwrap().is_none());
        fs::write(helper.path(), "old").unwrap();
        fs::set_permissions(helper.path(), fs::Permissions::from_mode(0o644)).unwrap();

        helper.store(&Token::new("s.new")).unwrap();
        assert_eq!(fs::read_to_string(helper.path()).unwrap(), "s.new");
        assert_eq!(fs::metadata(helper.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        fs::write(helper.path(), "s.hand\n").unwrap();
        assert_eq!(helper.load().unwrap().unwrap().expose(), "s.hand");
    }
}
