//! One block of a file, checked against the table of keys that may stand in it.
//!
//! [`Section::open`] refuses what nobody knows and warns of what only Vault knows; after that the getters are asked
//! for one key each. Values are never quoted here, since any key may hold a secret; a caller that knows better does.

use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

use super::error::{At, ConfigError, ConfigWarning};
use super::hcl::{Item, Value};
use super::value;

/// What becomes of a key that Vault knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It does what it does in Vault.
    InEffect,
    /// It is read, and the operator is told that nothing comes of it yet.
    NotYet,
    /// It has no meaning here and never will: the text says why. Reported as a warning.
    Pointless(&'static str),
}

/// The keys of a section. Flat tables, one line per key.
pub(super) type Keys = &'static [(&'static str, Use)];

/// A key with its place. The trees of several files are merged into one list of these.
pub(super) struct Entry<'t> {
    pub(super) key: &'t str,
    pub(super) at: At,
    pub(super) value: &'t Value,
}

/// A block under a label (or under a plain key, whose label is empty).
pub(super) struct Block<'t> {
    pub(super) label: &'t str,
    pub(super) at: At,
    pub(super) items: &'t [Item],
}

/// A block whose keys have been checked.
pub(super) struct Section<'t> {
    /// How messages call it, such as `listener "tcp"`. Empty at the top of a file.
    name: String,
    entries: Vec<Entry<'t>>,
}

impl<'t> Block<'t> {
    /// Checks the block's keys; see [`Section::open`].
    pub(super) fn open(
        &self,
        name: &str,
        keys: &[Keys],
        warnings: &mut Vec<ConfigWarning>,
    ) -> Result<Section<'t>, ConfigError> {
        let entry = |item: &'t Item| Entry {
            key: &item.key,
            at: At { file: Arc::clone(&self.at.file), line: item.line },
            value: &item.value,
        };
        Section::open(name, self.items.iter().map(entry).collect(), keys, warnings)
    }
}

impl<'t> Section<'t> {
    /// Checks `entries` against the tables and keeps them.
    ///
    /// # Errors
    /// A key that is in no table, with the nearest one that is; a key given twice that is not a block.
    pub(super) fn open(
        name: &str,
        entries: Vec<Entry<'t>>,
        keys: &[Keys],
        warnings: &mut Vec<ConfigWarning>,
    ) -> Result<Self, ConfigError> {
        let section = Section { name: name.to_owned(), entries };
        for (index, entry) in section.entries.iter().enumerate() {
            let known = keys.iter().copied().flatten().find(|(key, _)| *key == entry.key);
            let place = section.place(entry.key);
            match known {
                None => return Err(entry.at.error(section.unknown(entry.key, keys))),
                Some((_, Use::InEffect)) => {}
                Some((_, Use::NotYet)) => {
                    let text = format!("{place} is accepted, but has no effect yet");
                    warnings.push(entry.at.warning(entry.key, &text));
                }
                Some((_, Use::Pointless(reason))) => {
                    let text = format!("{place} has no effect: {reason}");
                    warnings.push(entry.at.warning(entry.key, &text));
                }
            }
            let earlier = section.entries[..index].iter().find(|other| other.key == entry.key);
            if let Some(earlier) = earlier.filter(|other| !is_block(other.value) || !is_block(entry.value)) {
                let text = format!("{place} is given twice (first on line {})", earlier.at.line);
                return Err(entry.at.error(text));
            }
        }
        Ok(section)
    }

    /// The string under `key`, wiped when dropped.
    pub(super) fn secret(&self, key: &str) -> Result<Option<Zeroizing<String>>, ConfigError> {
        let found = self.scalar(key)?;
        Ok(found.map(|(_, text)| Zeroizing::new(text.to_owned())))
    }

    /// The string under `key`. An empty one counts as absent, as in Vault.
    pub(super) fn string(&self, key: &str) -> Result<Option<String>, ConfigError> {
        let found = self.scalar(key)?;
        Ok(found.filter(|(_, text)| !text.is_empty()).map(|(_, text)| text.to_owned()))
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.parsed(key, value::boolean)
    }

    pub(super) fn whole(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        self.parsed(key, value::whole)
    }

    pub(super) fn duration(&self, key: &str) -> Result<Option<Duration>, ConfigError> {
        self.parsed(key, value::duration)
    }

    /// The scalar under `key`, put through `parse`, whose error is a phrase such as "must be a number".
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some((at, text)) = self.scalar(key)? else { return Ok(None) };
        parse(text).map(Some).map_err(|reason| at.error(format!("{} {reason}", self.place(key))))
    }

    /// As [`Section::parsed`], but an empty string counts as absent.
    pub(super) fn parsed_text<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let parsed =
            self.parsed(key, |text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) })?;
        Ok(parsed.flatten())
    }

    /// A list of strings, or one string with commas.
    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let Some(entry) = self.entry(key) else { return Ok(Vec::new()) };
        strings_of(entry.value).ok_or_else(|| {
            entry
                .at
                .error(format!("{} must be a list of strings, or one string with commas", self.place(key)))
        })
    }

    /// The blocks under a key that takes no label, such as `retry_join`: repeated, or as a list.
    pub(super) fn blocks(&self, key: &str) -> Result<Vec<Block<'t>>, ConfigError> {
        self.blocks_written(key, "")
    }

    /// `label` is what a correct block has between its key and its brace, for the message.
    fn blocks_written(&self, key: &str, label: &str) -> Result<Vec<Block<'t>>, ConfigError> {
        let mut blocks = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.key == key) {
            let error =
                || entry.at.error(format!("{} must be a block: {key} {label}{{ .. }}", self.place(key)));
            let objects = objects_of(entry.value).ok_or_else(error)?;
            blocks.extend(objects.into_iter().map(|items| Block { label: "", at: entry.at.clone(), items }));
        }
        Ok(blocks)
    }

    /// The only block under `key`, if there is one.
    pub(super) fn block(&self, key: &str) -> Result<Option<Block<'t>>, ConfigError> {
        let mut blocks = self.blocks(key)?;
        if let [_, second, ..] = blocks.as_slice() {
            return Err(second.at.error(format!("{} is given twice", self.place(key))));
        }
        Ok(blocks.pop())
    }

    /// The blocks under a key that takes a label, such as `listener "tcp"`, in every form that JSON allows.
    pub(super) fn labelled(&self, key: &str) -> Result<Vec<Block<'t>>, ConfigError> {
        let mut blocks = Vec::new();
        let untyped = |at: &At| {
            at.error(format!("{} needs a type before its brace: {key} \"TYPE\" {{ .. }}", self.place(key)))
        };
        for outer in self.blocks_written(key, "\"TYPE\" ")? {
            // An empty block would otherwise be as good as none.
            if outer.items.is_empty() {
                return Err(untyped(&outer.at));
            }
            for item in outer.items {
                let at = At { file: Arc::clone(&outer.at.file), line: item.line };
                let objects = objects_of(&item.value).ok_or_else(|| untyped(&at))?;
                let block = |items| Block { label: item.key.as_str(), at: at.clone(), items };
                blocks.extend(objects.into_iter().map(block));
            }
        }
        Ok(blocks)
    }

    /// The place of `key`, for messages about its value. Only for keys that are there.
    pub(super) fn at(&self, key: &str) -> Option<&At> {
        self.entry(key).map(|entry| &entry.at)
    }

    /// How messages call `key`: `"path" in storage "raft"`.
    pub(super) fn place(&self, key: &str) -> String {
        if self.name.is_empty() { format!("\"{key}\"") } else { format!("\"{key}\" in {}", self.name) }
    }

    fn scalar(&self, key: &str) -> Result<Option<(&At, &'t str)>, ConfigError> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        match entry.value {
            Value::Scalar(text) => Ok(Some((&entry.at, text.as_str()))),
            _ => Err(entry
                .at
                .error(format!("{} must be a single value, not a list or block", self.place(key)))),
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry<'t>> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn unknown(&self, key: &str, keys: &[Keys]) -> String {
        let names = keys.iter().copied().flatten().map(|(name, _)| *name);
        let mut hint = String::new();
        if let Some(name) = nearest(key, names) {
            hint = format!("; did you mean \"{name}\"?");
        }
        let sections = super::sections_with(key);
        if !sections.is_empty() {
            hint.push_str(&format!("; \"{key}\" belongs in {}", sections.join(" or ")));
        }
        format!("unknown key {}{hint}", self.place(&printable(key)))
    }
}

/// The strings of a list, or of one scalar with commas. `None` if there is anything else in it.
pub(super) fn strings_of(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Scalar(text) => {
            Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
        }
        Value::List(values) => values
            .iter()
            .map(|value| match value {
                Value::Scalar(text) => Some(text.trim().to_owned()),
                _ => None,
            })
            .collect(),
        Value::Object(_) => None,
    }
}

/// The known name closest to `key`, if one is close enough to be what was meant.
pub(super) fn nearest<'n>(key: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let longest_worth_comparing = 64;
    if key.len() > longest_worth_comparing {
        return None;
    }
    let budget = (key.chars().count() / 3).max(1);
    let scored = names.map(|name| (edits(key, name), name));
    scored.filter(|(distance, _)| *distance <= budget).min().map(|(_, name)| name)
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour to make `b` of `a`
/// (optimal string alignment). Case and the choice between `-` and `_` count for nothing.
fn edits(a: &str, b: &str) -> usize {
    let letters = |text: &str| text.to_lowercase().replace('-', "_").chars().collect::<Vec<_>>();
    let (a, b) = (letters(a), letters(b));
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// A key or other short text made safe for a terminal: control characters escaped, length bounded.
pub(super) fn printable(text: &str) -> String {
    let longest = 80;
    let mut out: String = text.chars().take(longest).flat_map(char::escape_debug).collect();
    if text.chars().count() > longest {
        out.push('…');
    }
    out
}

fn is_block(value: &Value) -> bool {
    objects_of(value).is_some()
}

fn objects_of(value: &Value) -> Option<Vec<&[Item]>> {
    match value {
        Value::Object(items) => Some(vec![items.as_slice()]),
        Value::List(values) => values
            .iter()
            .map(|value| match value {
                Value::Object(items) => Some(items.as_slice()),
                _ => None,
            })
            .collect(),
        Value::Scalar(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_of_the_finger_and_nothing_far_fetched() {
        let names = ["tls_cert_file", "tls_key_file", "address", "path", "node_id"];
        let find = |key| nearest(key, names.into_iter());
        assert_eq!(find("tls_cert_fil"), Some("tls_cert_file"));
        assert_eq!(find("adress"), Some("address"));
        assert_eq!(find("node-id"), Some("node_id"));
        assert_eq!(find("Address"), Some("address"));
        assert_eq!(find("ndoe_id"), Some("node_id"));
        assert_eq!(find("ptah"), Some("path"));
        assert_eq!(find("banana"), None);
        assert_eq!(find(&"x".repeat(10_000)), None);
    }

    #[test]
    fn edits_counts_a_swap_once() {
        assert_eq!(edits("abc", "acb"), 1);
        assert_eq!(edits("abc", "abc"), 0);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("kitten", "sitting"), 3);
    }

    #[test]
    fn printable_escapes_what_could_drive_a_terminal() {
        assert_eq!(printable("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(printable(&"x".repeat(100)).chars().count(), 81);
    }
}
