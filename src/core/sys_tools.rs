//! `sys/tools`: random bytes and hashes, for clients that have no good source of either.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};
use sha2::Digest;
use zeroize::Zeroizing;

use super::{error::ApiError, fields::Fields, response::Answer};
use crate::secret::fill_random;

/// Most bytes that one request may draw, as Vault's.
const MAX_RANDOM_BYTES: u64 = 128 * 1024;
/// Bytes that are drawn when the request does not say how many.
const DEFAULT_RANDOM_BYTES: u64 = 32;

/// Draws bytes. `below` is what stands in the path: nothing, a count, a source, or a source and a count.
///
/// # Errors
/// [`ApiError::Invalid`] when count, source or format make no sense.
pub(super) fn random(below: &str, fields: &Fields<'_>) -> Result<Answer, ApiError> {
    let not_a_count = || ApiError::invalid("error parsing url-set byte count: not a number");
    let (source, count) = match below.split_once('/') {
        Some((source, count)) => (Some(source.to_owned()), Some(count.parse().map_err(|_| not_a_count())?)),
        None if below.is_empty() => (None, None),
        None => match below.parse::<u64>() {
            Ok(count) => (None, Some(count)),
            Err(_) if SOURCES.contains(&below) => (Some(below.to_owned()), None),
            Err(_) => return Err(not_a_count()),
        },
    };
    let count = match count {
        Some(count) => count,
        None if fields.value("bytes").is_some() => fields.count("bytes")?,
        None => DEFAULT_RANDOM_BYTES,
    };
    let source = match source {
        Some(source) => source,
        None => fields.text_or_empty("source")?,
    };
    if !source.is_empty() && !SOURCES.contains(&source.as_str()) {
        return Err(ApiError::invalid("unsupported entropy source; use platform, seal or all"));
    }
    if count == 0 {
        return Err(ApiError::invalid("\"bytes\" cannot be less than 1"));
    }
    if count > MAX_RANDOM_BYTES {
        return Err(ApiError::invalid(format!("\"bytes\" should be less than {MAX_RANDOM_BYTES}")));
    }
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(count).unwrap_or(0)]);
    fill_random(&mut bytes);
    let text = match fields.text_or_empty("format")?.as_str() {
        "" | "base64" => STANDARD.encode(&*bytes),
        "hex" => hex::encode(&*bytes),
        _ => return Err(ApiError::invalid("unsupported encoding format; must be \"hex\" or \"base64\"")),
    };
    Ok(one("random_bytes", text))
}

/// Every source is the operating system's generator: there is no seal that would draw for us.
const SOURCES: [&str; 3] = ["platform", "seal", "all"];

/// Hashes. `below` is the algorithm where it stands in the path.
///
/// # Errors
/// [`ApiError::Invalid`] when the algorithm is unknown or the input is no base64.
pub(super) fn hash(below: &str, fields: &Fields<'_>) -> Result<Answer, ApiError> {
    let algorithm = match below {
        "" => fields.text_or_empty("algorithm")?,
        named => named.to_owned(),
    };
    let input = Zeroizing::new(fields.text_or_empty("input")?);
    let input = STANDARD
        .decode(input.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| ApiError::invalid("unable to decode input as base64"))?;
    let digest = match algorithm.as_str() {
        "" | "sha2-256" => sha2::Sha256::digest(&*input).to_vec(),
        "sha2-224" => sha2::Sha224::digest(&*input).to_vec(),
        "sha2-384" => sha2::Sha384::digest(&*input).to_vec(),
        "sha2-512" => sha2::Sha512::digest(&*input).to_vec(),
        "sha3-224" => sha3::Sha3_224::digest(&*input).to_vec(),
        "sha3-256" => sha3::Sha3_256::digest(&*input).to_vec(),
        "sha3-384" => sha3::Sha3_384::digest(&*input).to_vec(),
        "sha3-512" => sha3::Sha3_512::digest(&*input).to_vec(),
        _ => {
            return Err(ApiError::invalid("unsupported algorithm; use sha2-256 or another of sha2 and sha3"));
        }
    };
    let text = match fields.text_or_empty("format")?.as_str() {
        "" | "hex" => hex::encode(digest),
        "base64" => STANDARD.encode(digest),
        _ => return Err(ApiError::invalid("unsupported encoding format; must be \"hex\" or \"base64\"")),
    };
    Ok(one("sum", text))
}

fn one(name: &str, text: String) -> Answer {
    Answer::data(Map::from_iter([(name.to_owned(), Value::from(text))]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::response::text_to_map;

    fn field(answer: Result<Answer, ApiError>, name: &str) -> String {
        match answer {
            Ok(Answer::Logical(logical)) => logical.data.unwrap()[name].as_str().unwrap().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    fn draw(below: &str, body: &str) -> Result<Answer, ApiError> {
        random(below, &Fields(&text_to_map(body).unwrap()))
    }

    #[test]
    fn as_many_bytes_are_drawn_as_were_asked_for() {
        for (below, body, length) in [
            ("", r#"{"format":"hex"}"#, 64),
            ("16", r#"{"format":"hex"}"#, 32),
            ("", r#"{"format":"hex","bytes":"5"}"#, 10),
            ("platform/3", r#"{"format":"hex"}"#, 6),
            ("all", r#"{"format":"hex","bytes":7}"#, 14),
            ("131072", r#"{"format":"hex"}"#, 262_144),
            ("3", "{}", 4),
        ] {
            assert_eq!(field(draw(below, body), "random_bytes").len(), length, "{below} {body}");
        }
        assert_ne!(field(draw("", "{}"), "random_bytes"), field(draw("", "{}"), "random_bytes"));
        for (below, body) in [
            ("0", "{}"),
            ("131073", "{}"),
            ("-1", "{}"),
            ("moon", "{}"),
            ("platform/x", "{}"),
            ("", r#"{"source":"moon"}"#),
            ("", r#"{"format":"octal"}"#),
            ("", r#"{"bytes":-5}"#),
            ("", r#"{"bytes":1.5}"#),
        ] {
            assert!(matches!(draw(below, body), Err(ApiError::Invalid(_))), "{below} {body}");
        }
    }

    #[test]
    fn hashes_are_those_of_the_standards() {
        // The empty message and "abc", FIPS 180-4 and FIPS 202.
        for (algorithm, input, sum) in [
            ("sha2-256", "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("sha2-224", "YWJj", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
            ("sha3-224", "YWJj", "e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf"),
            ("sha3-256", "YWJj", "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
        ] {
            let body = text_to_map(&format!(r#"{{"input":"{input}"}}"#)).unwrap();
            assert_eq!(field(hash(algorithm, &Fields(&body)), "sum"), sum, "{algorithm}");
        }
        let body = text_to_map(r#"{"input":"YWJj","algorithm":"md5"}"#).unwrap();
        assert!(hash("", &Fields(&body)).is_err());
        let body = text_to_map(r#"{"input":"%%%"}"#).unwrap();
        assert_eq!(hash("", &Fields(&body)), Err(ApiError::invalid("unable to decode input as base64")));
    }
}
