//! What a node and the helper process of a seal say to each other: a length (u32, big-endian), then bincode.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use zeroize::{Zeroize, Zeroizing};

use crate::config::{OaepHash, Pkcs11Config, WrapMechanism};

/// Bytes of a frame at most. A blob, its AAD and a path are far below.
pub(super) const MAX_FRAME_LEN: usize = 64 * 1024;

/// Secret bytes of a message, wiped when dropped.
#[derive(bincode::Encode, bincode::Decode)]
pub(super) struct Wiped(pub(super) Vec<u8>);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Which token and keys: a [`Pkcs11Config`] without its PIN.
#[derive(Clone, Debug, bincode::Encode, bincode::Decode)]
pub(super) struct Target {
    pub(super) lib: PathBuf,
    pub(super) slot: Option<u64>,
    pub(super) token_label: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) key_label: String,
    pub(super) key_id: Option<Vec<u8>>,
    pub(super) mechanism: Option<WrapMechanism>,
    pub(super) oaep_hash: Option<OaepHash>,
    pub(super) force_rw_session: bool,
    pub(super) hmac_key_label: Option<String>,
    pub(super) hmac_key_id: Option<Vec<u8>>,
}

impl Target {
    pub(super) fn of(config: &Pkcs11Config) -> Self {
        Self {
            lib: config.lib.clone(),
            slot: config.slot,
            token_label: config.token_label.clone(),
            serial: config.serial.clone(),
            key_label: config.key_label.clone(),
            key_id: config.key_id.clone(),
            mechanism: config.mechanism,
            oaep_hash: config.oaep_hash,
            force_rw_session: config.force_rw_session,
            hmac_key_label: config.hmac_key_label.clone(),
            hmac_key_id: config.hmac_key_id.clone(),
        }
    }
}

/// What the helper is asked. The first two come first, and in this order.
#[derive(bincode::Encode, bincode::Decode)]
pub(super) enum Request {
    /// Load the module and find the token.
    Open(Target),
    /// Log in with this PIN.
    Login(Wiped),
    Encrypt {
        kek: Wiped,
        aad: Vec<u8>,
    },
    Decrypt {
        blob: Vec<u8>,
        aad: Vec<u8>,
    },
    Random {
        len: u32,
    },
    Facts,
    /// Make the wrapping key, and what goes with it, where there is none; `rotate` makes one more in any case.
    Generate {
        rotate: bool,
    },
}

/// What it answers.
#[derive(bincode::Encode, bincode::Decode)]
pub(super) enum Reply {
    Opened(TokenFacts),
    Done,
    Sealed {
        key_id: String,
        blob: Vec<u8>,
    },
    Kek(Wiped),
    Random(Wiped),
    /// `None`: the token has no generator.
    NoRandom,
    Facts(KeyFacts),
    Failed(Failure),
}

/// What is known of a token without logging in.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct TokenFacts {
    /// What the module says of itself.
    pub module: String,
    /// The token's label.
    pub label: String,
    /// Its serial number.
    pub serial: String,
    /// Its maker and model.
    pub model: String,
    /// The slot it is in now.
    pub slot: u64,
    /// Somebody gave a wrong PIN since the last right one.
    pub pin_count_low: bool,
    /// One more wrong PIN locks it.
    pub pin_final_try: bool,
    /// It takes no PIN any more.
    pub pin_locked: bool,
    /// It has a PIN for its user.
    pub pin_initialized: bool,
}

/// What is known of the wrapping key.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct KeyFacts {
    /// Names it in a [`SealedKek`](crate::seal::SealedKek); empty where there is none.
    pub key_id: String,
    /// How it wraps.
    pub mechanism: String,
    /// The check value that the token gives for it, in hexadecimal digits.
    pub kcv: String,
    /// How many keys bear its label: older ones are kept for what they wrapped.
    pub keys_of_label: u32,
    /// It was made on the token and can never leave it, as the token says.
    pub never_left: bool,
    /// Why there is no key, where there is none.
    pub missing: String,
}

/// Why the helper did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub(super) enum Failure {
    Unavailable(String),
    NeedsOperator(String),
    NotOurs(String),
    /// The token does not take the PIN.
    PinRefused(String),
}

fn encoding() -> impl bincode::config::Config {
    bincode::config::standard().with_big_endian().with_fixed_int_encoding().with_limit::<MAX_FRAME_LEN>()
}

/// A whole frame, in memory that is wiped and that never grew.
pub(super) fn frame(message: &impl bincode::Encode) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; MAX_FRAME_LEN]);
    let len = bincode::encode_into_slice(message, &mut bytes[4..], encoding()).map_err(io::Error::other)?;
    let prefix = u32::try_from(len).map_err(io::Error::other)?;
    bytes[..4].copy_from_slice(&prefix.to_be_bytes());
    bytes.truncate(4 + len);
    Ok(bytes)
}

/// The length that a frame begins with.
pub(super) fn body_len(prefix: [u8; 4]) -> io::Result<usize> {
    let len = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if len > MAX_FRAME_LEN { Err(io::Error::other("a frame is too long")) } else { Ok(len) }
}

/// What a frame's body says; nothing may follow it.
pub(super) fn message<M: bincode::Decode<()>>(body: &[u8]) -> io::Result<M> {
    let (message, read) = bincode::decode_from_slice(body, encoding()).map_err(io::Error::other)?;
    if read == body.len() { Ok(message) } else { Err(io::Error::other("a frame has something at its end")) }
}

/// Writes a frame; for the helper, which waits for nothing else.
pub(super) fn write(stream: &mut impl Write, reply: &Reply) -> io::Result<()> {
    stream.write_all(&frame(reply)?)
}

/// Reads a frame; `None` at the end of the stream.
pub(super) fn read(stream: &mut impl Read) -> io::Result<Option<Request>> {
    let mut prefix = [0; 4];
    match stream.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        done => done?,
    }
    let mut body = Zeroizing::new(vec![0; body_len(prefix)?]);
    stream.read_exact(&mut body)?;
    message(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_out_as_it_went_in_and_nothing_longer_does() {
        let frame = frame(&Request::Login(Wiped(b"1234".to_vec()))).unwrap();
        let Some(Request::Login(pin)) = read(&mut frame.as_slice()).unwrap() else { panic!("a login") };
        assert_eq!(pin.0, b"1234");
        assert!(message::<Request>(&[&frame[4..], &[0]].concat()).is_err(), "something follows");
        assert!(read(&mut &frame[..frame.len() - 1]).is_err(), "cut off");
        assert!(read(&mut [].as_slice()).unwrap().is_none());
    }

    #[test]
    fn fuzz_pkcs11_replies() {
        let replies = [
            Reply::Done,
            Reply::Kek(Wiped(vec![7; 32])),
            Reply::Sealed { key_id: "k".to_owned(), blob: vec![1; 100] },
            Reply::Opened(TokenFacts::default()),
            Reply::Facts(KeyFacts::default()),
            Reply::Failed(Failure::PinRefused("no".to_owned())),
        ];
        let samples = replies.iter().map(|reply| super::frame(reply).unwrap()[4..].to_vec()).collect();
        let bounds = keystead_fuzz::Bounds { base_bytes: 256 << 10, bytes_per_byte: 8 };
        keystead_fuzz::check!(samples, bounds, |input: &[u8]| {
            if let Ok(reply) = message::<Reply>(input) {
                assert_eq!(super::frame(&reply).unwrap()[4..], *input, "a reply has one encoding");
            }
        });
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_memory_is_taken() {
        assert!(read(&mut [0xFF; 8].as_slice()).is_err());
        assert!(super::frame(&Reply::Random(Wiped(vec![0; MAX_FRAME_LEN]))).is_err());
    }
}
