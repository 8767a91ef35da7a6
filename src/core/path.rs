//! The path of a request, decoded once and free of ambiguity.
//!
//! Policies, the router and the engines all see the same decoded path. What could be read in two ways (`.`,
//! `..`, empty segments, control characters, bytes that are not UTF-8) is refused here, before any of them,
//! however it was encoded; no client needs it, and every one of these has been a way around a policy somewhere.

/// Longest decoded path, in bytes.
pub const MAX_PATH_BYTES: usize = 8_192;
/// Most segments in a path.
pub const MAX_PATH_SEGMENTS: usize = 48;
/// Longest segment, in bytes.
pub const MAX_SEGMENT_BYTES: usize = 4_096;

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A `%` without two hexadecimal digits behind it.
    #[error("invalid percent-encoding in path")]
    InvalidEncoding,
    /// The decoded bytes are not UTF-8.
    #[error("path contains invalid UTF-8 characters")]
    InvalidUtf8,
    /// A control character, encoded or not.
    #[error("path contains control characters")]
    ControlCharacter,
    /// A `.` or `..` segment.
    #[error("relative paths not supported")]
    Relative,
    /// Two slashes in a row.
    #[error("empty path segments not supported")]
    EmptySegment,
    /// Too long or too deep.
    #[error("path too long")]
    TooLong,
}

/// A decoded path below `/v1/`, such as `secret/data/app`; empty for `/v1/` itself.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestPath {
    text: String,
}

// A path can be the name of a secret, so it is not printed by accident.
impl std::fmt::Debug for RequestPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RequestPath(..)")
    }
}

impl RequestPath {
    /// Decodes what stands in the URL behind `/v1/`, exactly once.
    pub fn from_encoded(encoded: &str) -> Result<Self, PathError> {
        Self::from_decoded(percent_decode(encoded.as_bytes())?)
    }

    /// Checks a path that has been decoded already, such as one in a forwarded request.
    pub fn from_decoded(text: String) -> Result<Self, PathError> {
        if text.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(PathError::ControlCharacter);
        }
        let body = text.strip_suffix('/').unwrap_or(&text);
        if !text.is_empty() {
            let mut count = 0;
            for segment in body.split('/') {
                count += 1;
                match segment {
                    "" => return Err(PathError::EmptySegment),
                    "." | ".." => return Err(PathError::Relative),
                    _ if segment.len() > MAX_SEGMENT_BYTES => return Err(PathError::TooLong),
                    _ => {}
                }
            }
            if count > MAX_PATH_SEGMENTS {
                return Err(PathError::TooLong);
            }
        }
        Ok(Self { text })
    }

    /// The whole path, with its trailing slash if it has one.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path ends in `/`, so that it names a folder.
    pub fn is_folder(&self) -> bool {
        self.text.ends_with('/')
    }

    /// The same path as a folder; the empty path stays empty.
    pub fn into_folder(mut self) -> Self {
        if !self.text.is_empty() && !self.is_folder() {
            self.text.push('/');
        }
        self
    }

    /// The segments, none of which is empty.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        segments(&self.text)
    }
}

/// The segments of a checked path or of a part of one.
pub fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// Decodes `%XX`. A `+` stays a `+`: it means a space in forms only.
fn percent_decode(encoded: &[u8]) -> Result<String, PathError> {
    if encoded.len() > 3 * MAX_PATH_BYTES {
        return Err(PathError::TooLong);
    }
    let mut out = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            bytes
                .next()
                .and_then(|byte| char::from(byte).to_digit(16))
                .and_then(|digit| u8::try_from(digit).ok())
                .ok_or(PathError::InvalidEncoding)
        };
        let high = digit()?;
        out.push(high << 4 | digit()?);
    }
    String::from_utf8(out).map_err(|_| PathError::InvalidUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_exactly_once() {
        for (sent, seen) in [
            ("secret/data/a", "secret/data/a"),
            ("", ""),
            ("secret/", "secret/"),
            ("kp%2Fa", "kp/a"),
            ("a%252Fb", "a%2Fb"),
            ("a%252e%252e/b", "a%2e%2e/b"),
            ("a+b", "a+b"),
            ("a%20b", "a b"),
            ("a%3Fb%23c", "a?b#c"),
            ("x..y/..a/.../b", "x..y/..a/.../b"),
            ("\\..", "\\.."),
            ("%C3%A9", "é"),
        ] {
            assert_eq!(RequestPath::from_encoded(sent).unwrap().as_str(), seen, "{sent}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused_however_they_are_encoded() {
        use PathError::*;
        for (sent, error) in [
            ("a/../b", Relative),
            ("a/%2e%2e/b", Relative),
            ("a/.%2E/b", Relative),
            ("..%2Fb", Relative),
            ("a/./b", Relative),
            ("a/%2e", Relative),
            ("a/..", Relative),
            ("a/../", Relative),
            ("a//b", EmptySegment),
            ("a/%2Fb", EmptySegment),
            ("a//", EmptySegment),
            ("/a", EmptySegment),
            ("/", EmptySegment),
            ("a%00b", ControlCharacter),
            ("a%0ab", ControlCharacter),
            ("a%7f", ControlCharacter),
            ("a%c2%80", ControlCharacter),
            ("a%ff", InvalidUtf8),
            ("a%c0%ae", InvalidUtf8),
            ("a%zz", InvalidEncoding),
            ("a%4", InvalidEncoding),
            ("a%", InvalidEncoding),
        ] {
            assert_eq!(RequestPath::from_encoded(sent), Err(error), "{sent}");
        }
    }

    #[test]
    fn length_and_depth_are_bounded() {
        let deep = vec!["a"; MAX_PATH_SEGMENTS + 1].join("/");
        assert_eq!(RequestPath::from_encoded(&deep), Err(PathError::TooLong));
        let long = "a".repeat(MAX_SEGMENT_BYTES + 1);
        assert_eq!(RequestPath::from_encoded(&long), Err(PathError::TooLong));
        let longer = "%41".repeat(MAX_PATH_BYTES + 1);
        assert_eq!(RequestPath::from_encoded(&longer), Err(PathError::TooLong));
    }

    #[test]
    fn the_path_is_not_printed_by_debug() {
        let path = RequestPath::from_encoded("secret/data/payroll").unwrap();
        assert_eq!(format!("{path:?}"), "RequestPath(..)");
    }
}
