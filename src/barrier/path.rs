//! Deterministic sealing of paths: listing by prefix works on keys that name nothing.
//!
//! A key is `s`, the mount's UUID, then for every segment its sealed length (u16, big-endian) and AES-SIV
//! (RFC 5297) of the segment, its AAD the key of the folder it lies in. The same name in another folder, or the
//! same path in another mount, therefore looks different. What stays visible: lengths, the shape of the tree, and
//! that a name in one folder is the same as before.

use std::fmt;

use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;

use super::aad::Aad;
use crate::secret::PathKey;

/// Segments that a path may have.
pub const MAX_SEGMENTS: usize = 64;
/// Bytes that a segment may have before it is sealed.
pub const MAX_SEGMENT_LEN: usize = 4096;

const TYPE_TAG: &str = "keystead/v1/path";
const AREA: u8 = b's';
/// Area byte and mount.
const ROOT_LEN: usize = 17;
/// The synthetic IV in front of each sealed segment.
const SIV_LEN: usize = 16;

/// A mount's UUID, the first and only unsealed segment of a path; drawn when the mount is made and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct MountId(pub [u8; 16]);

impl MountId {
    /// The vault's own records.
    pub const VAULT: Self = Self([0; 16]);
}

impl fmt::Display for MountId {
    /// As a UUID is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 32];
        hex::encode_to_slice(self.0, &mut digits).expect("two digits for each byte");
        let digits = str::from_utf8(&digits).expect("digits are ASCII");
        let mut text = String::with_capacity(36);
        for (from, until) in [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)] {
            if from > 0 {
                text.push('-');
            }
            text.push_str(&digits[from..until]);
        }
        f.write_str(&text)
    }
}

/// Why a path could not be sealed or opened. None of the texts shows a name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A record needs a name.
    #[error("a record's path has no segments")]
    NoSegments,
    /// Two slashes in a row, or one at the end.
    #[error("path has an empty segment")]
    EmptySegment,
    /// A segment is longer than [`MAX_SEGMENT_LEN`].
    #[error("path has a segment of {len} bytes; {MAX_SEGMENT_LEN} are allowed")]
    SegmentTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The path has more than [`MAX_SEGMENTS`] segments.
    #[error("path has {count} segments; {MAX_SEGMENTS} are allowed")]
    TooDeep {
        /// Number of segments.
        count: usize,
    },
    /// The bytes are not laid out as a sealed record's key.
    #[error("not the key of a sealed record")]
    Malformed,
    /// The segment was not sealed by this vault for this folder.
    #[error("path segment is not authentic: sealed by another vault or for another folder, or damaged")]
    NotAuthentic,
}

/// Seals and opens under one path key.
///
/// The cipher wants to be borrowed mutably, so every path gets one of its own: three AES-256 key schedules (below
/// a microsecond) instead of a lock that all requests would share.
pub(super) struct PathSealer(Aes256Siv);

impl PathSealer {
    pub(super) fn new(key: &PathKey) -> Self {
        Self(Aes256Siv::new(key.expose().into()))
    }

    pub(super) fn seal(mut self, mount: MountId, segments: &[&str]) -> Result<Vec<u8>, PathError> {
        if segments.len() > MAX_SEGMENTS {
            return Err(PathError::TooDeep { count: segments.len() });
        }
        let sealed_len: usize = segments.iter().map(|segment| segment.len() + SIV_LEN + 2).sum();
        let mut key = Vec::with_capacity(ROOT_LEN + sealed_len);
        key.push(AREA);
        key.extend_from_slice(&mount.0);
        for segment in segments {
            self.append(&mut key, segment)?;
        }
        Ok(key)
    }

    /// The key of a record or folder in a folder whose key is known.
    pub(super) fn seal_below(mut self, mut folder: Vec<u8>, segment: &str) -> Result<Vec<u8>, PathError> {
        self.append(&mut folder, segment)?;
        Ok(folder)
    }

    fn append(&mut self, key: &mut Vec<u8>, segment: &str) -> Result<(), PathError> {
        let sealed = self.seal_segment(key, segment)?;
        let len = u16::try_from(sealed.len()).expect("a segment within its bound fits");
        key.extend_from_slice(&len.to_be_bytes());
        key.extend_from_slice(&sealed);
        Ok(())
    }

    fn seal_segment(&mut self, folder: &[u8], segment: &str) -> Result<Vec<u8>, PathError> {
        if segment.is_empty() {
            return Err(PathError::EmptySegment);
        }
        if segment.len() > MAX_SEGMENT_LEN {
            return Err(PathError::SegmentTooLong { len: segment.len() });
        }
        let mut sealed = vec![0; SIV_LEN + segment.len()];
        let (siv, text) = sealed.split_at_mut(SIV_LEN);
        text.copy_from_slice(segment.as_bytes());
        let tag = self
            .0
            .encrypt_inout_detached([aad(folder)], text.into())
            .expect("one header is within the limit");
        siv.copy_from_slice(&tag);
        Ok(sealed)
    }

    pub(super) fn open_segment(mut self, folder: &[u8], sealed: &[u8]) -> Result<String, PathError> {
        self.open_one(folder, sealed)
    }

    pub(super) fn open(mut self, key: &[u8]) -> Result<(MountId, Vec<String>), PathError> {
        let (root, mut rest) = key.split_first_chunk::<ROOT_LEN>().ok_or(PathError::Malformed)?;
        let (area, mount) = root.split_first().expect("the root has 17 bytes");
        if *area != AREA {
            return Err(PathError::Malformed);
        }
        let mut segments = Vec::new();
        while !rest.is_empty() {
            let folder = &key[..key.len() - rest.len()];
            let (len, tail) = rest.split_first_chunk::<2>().ok_or(PathError::Malformed)?;
            let len = usize::from(u16::from_be_bytes(*len));
            let (sealed, tail) = tail.split_at_checked(len).ok_or(PathError::Malformed)?;
            segments.push(self.open_one(folder, sealed)?);
            rest = tail;
        }
        Ok((MountId(mount.try_into().expect("16 of the 17 bytes are left")), segments))
    }

    fn open_one(&mut self, folder: &[u8], sealed: &[u8]) -> Result<String, PathError> {
        let (siv, text) = sealed.split_first_chunk::<SIV_LEN>().ok_or(PathError::Malformed)?;
        let mut text = text.to_vec();
        self.0
            .decrypt_inout_detached([aad(folder)], text.as_mut_slice().into(), siv.into())
            .map_err(|_| PathError::NotAuthentic)?;
        String::from_utf8(text).map_err(|_| PathError::Malformed)
    }
}

fn aad(folder: &[u8]) -> Vec<u8> {
    Aad::new(TYPE_TAG).field(folder).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNT: MountId = MountId([0x44; 16]);

    fn sealer() -> PathSealer {
        PathSealer::new(&PathKey::filled(|key| (0..).zip(key).for_each(|(n, byte)| *byte = n)))
    }

    fn seal(segments: &[&str]) -> Vec<u8> {
        sealer().seal(MOUNT, segments).unwrap()
    }

    #[test]
    fn siv_is_that_of_rfc_5297() {
        // Appendix A.1; the appendix has no vector for 512-bit keys, which format_is_the_written_one below checks
        // against OpenSSL.
        let key = hex::decode("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff").unwrap();
        let ad = hex::decode("101112131415161718191a1b1c1d1e1f2021222324252627").unwrap();
        let mut text = hex::decode("112233445566778899aabbccddee").unwrap();
        let mut siv = aes_siv::siv::Aes128Siv::new_from_slice(&key).unwrap();
        let tag = siv.encrypt_inout_detached([&ad], text.as_mut_slice().into()).unwrap();
        assert_eq!(hex::encode(tag), "85632d07c6e8f37f950acd320a2ecc93");
        assert_eq!(hex::encode(text), "40c02b9690c4dc04daef7f6afe5c");
    }

    #[test]
    fn format_is_the_written_one() {
        let expected = [
            "7344444444444444444444444444444444",
            "0013",
            "74102b79eb69d242bbaabdbf611d6fd92a906c",
            "0012",
            "a69cf26a65506f5e49e1219ac3dab2fd81b3",
        ];
        assert_eq!(hex::encode(seal(&["app", "db"])), expected.concat());
    }

    #[test]
    fn what_was_sealed_opens() {
        let key = seal(&["app", "ä b", "c"]);
        let (mount, segments) = sealer().open(&key).unwrap();
        assert_eq!(mount, MOUNT);
        assert_eq!(segments, ["app", "ä b", "c"]);
        assert_eq!(sealer().open(&seal(&[])).unwrap(), (MOUNT, vec![]));
        let folder = seal(&["app", "ä b"]);
        assert!(key.starts_with(&folder));
        assert_eq!(sealer().open_segment(&folder, &key[folder.len() + 2..]).unwrap(), "c");
    }

    #[test]
    fn same_name_looks_different_in_another_folder_mount_and_under_another_key() {
        let name = |key: Vec<u8>| key[key.len() - 17..].to_vec();
        let here = name(seal(&["a", "x"]));
        assert_eq!(here, name(seal(&["a", "x"])));
        assert_ne!(here, name(seal(&["b", "x"])));
        assert_ne!(here, name(seal(&["x"])));
        assert_ne!(here, name(sealer().seal(MountId::VAULT, &["a", "x"]).unwrap()));
        assert_ne!(here, name(PathSealer::new(&PathKey::random()).seal(MOUNT, &["a", "x"]).unwrap()));
    }

    #[test]
    fn segment_moved_to_another_folder_or_mount_does_not_open() {
        let (from, to) = (seal(&["a"]), seal(&["b"]));
        let key = seal(&["a", "x"]);
        let sealed = &key[from.len() + 2..];
        assert_eq!(sealer().open_segment(&from, sealed).unwrap(), "x");
        assert_eq!(sealer().open_segment(&to, sealed), Err(PathError::NotAuthentic));
        let moved = [&to[..], &key[from.len()..]].concat();
        assert_eq!(sealer().open(&moved), Err(PathError::NotAuthentic));
        let mut elsewhere = key.clone();
        elsewhere[1] ^= 1;
        assert_eq!(sealer().open(&elsewhere), Err(PathError::NotAuthentic));
        assert_eq!(PathSealer::new(&PathKey::random()).open(&key), Err(PathError::NotAuthentic));
    }

    #[test]
    fn no_changed_byte_and_no_cut_key_opens_to_the_same() {
        let key = seal(&["app", "db"]);
        for n in 0..key.len() {
            let mut changed = key.clone();
            changed[n] ^= 1;
            assert!(sealer().open(&changed).is_err(), "byte {n}");
            if let Ok((_, segments)) = sealer().open(&key[..n]) {
                assert!(n == ROOT_LEN || (n == seal(&["app"]).len() && segments == ["app"]), "cut at {n}");
            }
        }
    }

    #[test]
    fn bounds_are_kept_without_showing_the_name() {
        let long = "x".repeat(MAX_SEGMENT_LEN + 1);
        let refused = sealer().seal(MOUNT, &["a", &long]).unwrap_err();
        assert_eq!(refused, PathError::SegmentTooLong { len: MAX_SEGMENT_LEN + 1 });
        assert!(!refused.to_string().contains('x'));
        assert_eq!(sealer().seal(MOUNT, &["a", ""]), Err(PathError::EmptySegment));
        assert_eq!(sealer().seal(MOUNT, &["a"; MAX_SEGMENTS + 1]), Err(PathError::TooDeep { count: 65 }));
        let deepest = sealer().seal(MOUNT, &[&long[1..]; MAX_SEGMENTS]).unwrap();
        assert_eq!(sealer().open(&deepest).unwrap().1.len(), MAX_SEGMENTS);
    }

    #[test]
    fn mount_is_written_as_a_uuid() {
        let mount = MountId(std::array::from_fn(|n| u8::try_from(n).unwrap()));
        assert_eq!(mount.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
