//! Small fixed encodings: a format byte, bincode, a checksum.

use bincode::{Decode, Encode};

use crate::error::StorageError;

/// Largest structure that is decoded; what is larger is damaged or hostile.
const LIMIT: usize = 4 * 1024 * 1024;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_big_endian().with_fixed_int_encoding().with_limit::<LIMIT>()
}

/// Encodes as format byte, bincode, CRC32 of both.
pub(crate) fn encode<T: Encode>(format: u8, value: &T) -> Vec<u8> {
    let mut out = vec![format];
    bincode::encode_into_std_write(value, &mut out, config()).expect("writing to memory cannot fail");
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

/// Decodes what [`encode`] wrote; `what` names it in errors.
///
/// # Errors
/// [`StorageError::Damaged`] for a wrong checksum, an unknown format or bytes left over.
pub(crate) fn decode<T: Decode<()>>(what: &str, format: u8, bytes: &[u8]) -> Result<T, StorageError> {
    let bad = |why: &str| StorageError::damaged(format!("{what} cannot be read: {why}"));
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| bad("cut off"))?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err(bad("wrong checksum"));
    }
    match body.split_first() {
        Some((&found, body)) if found == format => {
            let (value, used) =
                bincode::decode_from_slice(body, config()).map_err(|e| bad(&e.to_string()))?;
            if used == body.len() { Ok(value) } else { Err(bad("bytes left over")) }
        }
        Some((found, _)) => Err(bad(&format!("format {found}, this release knows {format}"))),
        None => Err(bad("empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_noticed() {
        let good = encode(1, &(7u64, 9u32));
        assert_eq!(decode::<(u64, u32)>("pair", 1, &good).expect("good"), (7, 9));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<(u64, u32)>("pair", 1, &bad).is_err(), "bit {bit}");
        }
    }
}
