//! Sealed paths that were made lately. Sealing a path costs several passes of AES for every segment, and the
//! same few are sealed for every request: that of the token, of the folders, of the key itself.
//!
//! The names are kept in the clear as long as the barrier lives, and wiped with it, as everything is that an
//! open node knows.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Arc,
};

use parking_lot::Mutex;

use super::MountId;
use crate::secret::SecretBytes;

/// Bytes of one of the two generations.
const GENERATION_BYTES: usize = 2 << 20;
/// What an entry takes besides its bytes, roughly.
const ENTRY_BYTES: usize = 96;
/// Longer paths are not kept.
const MAX_PATH_BYTES: usize = 1 << 10;

/// A mount and the segments of a path, in one buffer.
pub(super) struct PathName(SecretBytes);

impl PathName {
    /// The name of a path; `None` if it is too long to be kept.
    pub fn new(mount: MountId, segments: &[&str]) -> Option<Self> {
        let len: usize = mount.0.len() + segments.iter().map(|segment| segment.len() + 1).sum::<usize>();
        if len > MAX_PATH_BYTES {
            return None;
        }
        let mut name = Vec::with_capacity(len);
        name.extend_from_slice(&mount.0);
        for segment in segments {
            name.extend_from_slice(segment.as_bytes());
            // No text has this byte, so that no two lists of segments give one name.
            name.push(0xff);
        }
        Some(Self(name.into()))
    }
}

impl Borrow<[u8]> for PathName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Hash for PathName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl PartialEq for PathName {
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

impl Eq for PathName {}

#[derive(Default)]
struct Generations {
    young: HashMap<PathName, Arc<[u8]>>,
    old: HashMap<PathName, Arc<[u8]>>,
    /// Of the young generation.
    bytes: usize,
}

/// Sealed paths by their names. What was not asked for during a whole generation is dropped.
#[derive(Default)]
pub(super) struct PathCache(Mutex<Generations>);

impl PathCache {
    /// The sealed path of a name.
    pub fn get(&self, name: &PathName) -> Option<Arc<[u8]>> {
        let mut all = self.0.lock();
        if let Some(sealed) = all.young.get::<[u8]>(name.borrow()) {
            return Some(Arc::clone(sealed));
        }
        let (name, sealed) = all.old.remove_entry::<[u8]>(name.borrow())?;
        all.add(name, Arc::clone(&sealed));
        Some(sealed)
    }

    /// Keeps a sealed path.
    pub fn put(&self, name: PathName, sealed: Arc<[u8]>) {
        self.0.lock().add(name, sealed);
    }
}

impl Generations {
    fn add(&mut self, name: PathName, sealed: Arc<[u8]>) {
        self.bytes += name.0.len() + sealed.len() + ENTRY_BYTES;
        self.young.insert(name, sealed);
        if self.bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(segments: &[&str]) -> PathName {
        PathName::new(MountId([1; 16]), segments).unwrap()
    }

    #[test]
    fn names_of_different_paths_differ() {
        let lists: [&[&str]; 6] = [&[], &["a"], &["ab"], &["a", "b"], &["a", "b", "c"], &["ab", "c"]];
        for (n, one) in lists.iter().enumerate() {
            for (m, other) in lists.iter().enumerate() {
                assert_eq!(name(one) == name(other), n == m, "{one:?} {other:?}");
            }
        }
        assert!(PathName::new(MountId::VAULT, &["a"]).unwrap() != name(&["a"]), "another mount");
        assert!(PathName::new(MountId::VAULT, &["x".repeat(MAX_PATH_BYTES).as_str()]).is_none());
    }

    #[test]
    fn memory_is_bounded_and_what_is_asked_for_stays() {
        let cache = PathCache::default();
        cache.put(name(&["hot"]), Arc::from([7; 40]));
        for n in 0..100_000 {
            cache.put(name(&[&n.to_string()]), Arc::from([0; 40]));
            assert_eq!(cache.get(&name(&["hot"])).as_deref(), Some(&[7; 40][..]), "after {n}");
        }
        let all = cache.0.lock();
        assert!((all.young.len() + all.old.len()) * (ENTRY_BYTES + 40) < 3 * GENERATION_BYTES);
    }
}
