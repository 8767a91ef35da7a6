//! How the records of the request path are turned into bytes before they are sealed: a format version, then
//! bincode.

use bincode::{Decode, Encode, config::Configuration};

use super::error::ApiError;

/// The one format there is so far.
const VERSION: u8 = 1;
/// A decoder allocates no more than this, whatever the lengths inside claim.
const LIMIT_BYTES: usize = 34 << 20;

const CONFIG: Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<LIMIT_BYTES>,
> = bincode::config::standard().with_limit::<LIMIT_BYTES>();

/// Encodes a record with its format version in front.
pub fn encode<T: Encode>(record: &T) -> Result<Vec<u8>, ApiError> {
    let mut bytes = vec![VERSION];
    let body = bincode::encode_to_vec(record, CONFIG)
        .map_err(|error| ApiError::internal("encoding a record", &error))?;
    if body.len() >= LIMIT_BYTES {
        return Err(ApiError::TooLarge(format!("record larger than {LIMIT_BYTES} bytes")));
    }
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Decodes a record. Another version, bytes that are missing and bytes that are left over are errors.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, ApiError> {
    let damaged = |what: &str| ApiError::internal("decoding a record", &what);
    let (version, body) = bytes.split_first().ok_or_else(|| damaged("empty"))?;
    if *version != VERSION {
        return Err(damaged("unknown format version"));
    }
    let (record, used) = bincode::decode_from_slice(body, CONFIG).map_err(|_| damaged("does not decode"))?;
    if used != body.len() {
        return Err(damaged("trailing bytes"));
    }
    Ok(record)
}
