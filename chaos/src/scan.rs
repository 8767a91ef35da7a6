//! Looks for plaintext where only ciphertext should be.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose};

use crate::{Error, Result};

/// The shortest text worth looking for: anything shorter turns up by chance.
const SHORTEST: usize = 6;

/// One place where a text was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub file: PathBuf,
    /// What was looked for.
    pub text: String,
    /// In which form it was there.
    pub form: &'static str,
}

/// A text and every form in which it is looked for.
struct Needle {
    text: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Needle {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut forms = vec![
            ("text", bytes.to_vec()),
            ("hex", hex::encode(bytes).into_bytes()),
            ("HEX", hex::encode_upper(bytes).into_bytes()),
            ("UTF-16", bytes.iter().flat_map(|byte| [*byte, 0]).collect()),
        ];
        // Inside a longer text, base64 depends on where its groups of three begin. What is compared are the
        // characters that no neighbour can change.
        for (offset, form) in ["base64", "base64+1", "base64+2"].into_iter().enumerate() {
            let shifted = [&[0; 2][..offset], bytes].concat();
            let whole = shifted.len() / 3 * 3;
            let skip = if offset == 0 { 0 } else { 4 };
            for engine in [&general_purpose::STANDARD, &general_purpose::URL_SAFE] {
                let encoded = engine.encode(&shifted[..whole]);
                let form_bytes = encoded.as_bytes()[skip.min(encoded.len())..].to_vec();
                if form_bytes.len() >= SHORTEST && !forms.iter().any(|(_, known)| *known == form_bytes) {
                    forms.push((form, form_bytes));
                }
            }
        }
        Self { text: text.into(), forms }
    }
}

/// Searches all files below some paths for some texts: plain, in hex, in base64 at each alignment, in UTF-16.
///
/// # Errors
/// [`Error::Broken`] for a text that is too short to be looked for, [`Error::Io`] for a file that cannot be read.
pub fn scan(paths: &[&Path], texts: &[&str]) -> Result<Vec<Finding>> {
    if let Some(short) = texts.iter().find(|text| text.len() < SHORTEST) {
        return Err(Error::Broken(format!("{short:?} would be found by chance")));
    }
    let needles: Vec<Needle> = texts.iter().map(|text| Needle::new(text)).collect();
    let index = Index::new(&needles);
    let mut findings = Vec::new();
    for file in files(paths)? {
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            // A running node removes files of its own.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io(file.display().to_string())(error)),
        };
        for (text, form) in index.found(&bytes) {
            findings.push(Finding { file: file.clone(), text: text.into(), form });
        }
    }
    Ok(findings)
}

/// All forms of all texts by their first two bytes, so that one pass over a file looks for everything.
struct Index<'a> {
    forms: Vec<(&'a str, &'static str, &'a [u8])>,
    by_start: Vec<Vec<usize>>,
}

impl<'a> Index<'a> {
    fn new(needles: &'a [Needle]) -> Self {
        let forms: Vec<_> = needles
            .iter()
            .flat_map(|needle| needle.forms.iter().map(|(form, bytes)| (&*needle.text, *form, &bytes[..])))
            .collect();
        let mut by_start = vec![Vec::new(); 1 << 16];
        for (number, (_, _, bytes)) in forms.iter().enumerate() {
            by_start[start(bytes[0], bytes[1])].push(number);
        }
        Self { forms, by_start }
    }

    /// Which texts are there, and in which form; each once.
    fn found(&self, bytes: &[u8]) -> BTreeSet<(&'a str, &'static str)> {
        let mut found = BTreeSet::new();
        for (at, pair) in bytes.windows(2).enumerate() {
            for number in &self.by_start[start(pair[0], pair[1])] {
                let (text, form, form_bytes) = self.forms[*number];
                if bytes[at..].starts_with(form_bytes) {
                    found.insert((text, form));
                }
            }
        }
        found
    }
}

fn start(first: u8, second: u8) -> usize {
    usize::from(first) << 8 | usize::from(second)
}

/// Every file below some paths.
///
/// # Errors
/// [`Error::Io`].
pub fn files(paths: &[&Path]) -> Result<Vec<PathBuf>> {
    let mut open: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        let Ok(kind) = path.symlink_metadata() else { continue };
        if kind.is_dir() {
            let entries = std::fs::read_dir(&path).map_err(Error::io(path.display().to_string()))?;
            open.extend(entries.flatten().map(|entry| entry.path()));
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(content: &[u8], text: &str) -> Vec<&'static str> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("deep")).unwrap();
        std::fs::write(directory.path().join("deep/file"), content).unwrap();
        let findings = scan(&[directory.path()], &[text]).unwrap();
        findings.into_iter().map(|finding| finding.form).collect()
    }

    #[test]
    fn a_text_is_found_in_every_form_and_at_every_alignment() {
        assert_eq!(found(b"xx canary-7f3a yy", "canary-7f3a"), ["text"]);
        assert_eq!(found(hex::encode("acanary-7f3a").as_bytes(), "canary-7f3a"), ["hex"]);
        for before in 0..7 {
            let inside = [&b"1234567"[..before], b"canary-7f3a", b"tail"].concat();
            let encoded = general_purpose::STANDARD.encode(inside);
            assert_eq!(found(encoded.as_bytes(), "canary-7f3a").len(), 1, "{before} bytes before");
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert!(found(b"canary-7f3b and CANARY-7F3A", "canary-7f3a").is_empty());
        assert!(found(b"", "canary-7f3a").is_empty());
    }

    #[test]
    fn a_text_that_chance_would_find_is_refused() {
        assert!(scan(&[], &["abc"]).is_err());
    }
}
