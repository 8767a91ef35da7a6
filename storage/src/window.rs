//! The request window: what the newest requests were answered, so that each takes effect once.
//!
//! Bounded by count and bytes and by no clock, so that every node forgets the same requests at the same
//! entry. A running hash over all requests ever recorded is part of the state digest; the hash at the
//! beginning of the window is kept too, so that a snapshot's window can be verified.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, Bytes};
use foldhash::fast::RandomState;

use crate::error::StorageError;
use crate::ids::{RequestId, Version};
use crate::snapshot::WindowMark;

/// Most requests that are remembered.
pub(crate) const WINDOW_REQUESTS: usize = 65_536;
/// Most bytes of responses that are remembered.
pub(crate) const WINDOW_BYTES: usize = 16 * 1024 * 1024;

/// A request that was applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Remembered {
    pub id: RequestId,
    pub version: Version,
    pub response: Bytes,
}

/// Bytes of an encoded request without its response.
const HEADER_BYTES: usize = 16 + Version::BYTES + 4;

impl Remembered {
    /// Encodes as id, version, `u32` length, response.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.version.to_bytes());
        let length = u32::try_from(self.response.len()).expect("responses are below 4 GiB");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.response);
    }

    /// Bytes that [`Remembered::encode`] adds.
    pub fn encoded_bytes(&self) -> usize {
        HEADER_BYTES + self.response.len()
    }

    /// Takes one request off the front; `None` if it is not there as a whole.
    pub fn decode(bytes: &mut Bytes) -> Option<Self> {
        let length = u32::from_be_bytes(bytes.get(HEADER_BYTES - 4..HEADER_BYTES)?.try_into().ok()?) as usize;
        if bytes.len() < HEADER_BYTES + length {
            return None;
        }
        let mut id = [0; 16];
        bytes.copy_to_slice(&mut id);
        let version = Version { generation: bytes.get_u32(), index: bytes.get_u64() };
        bytes.advance(4);
        Some(Self { id: RequestId(id), version, response: bytes.split_to(length) })
    }
}

/// The newest applied requests, in order.
#[derive(Clone, Default)]
pub(crate) struct Window {
    requests: VecDeque<Remembered>,
    by_id: HashMap<RequestId, u64, RandomState>,
    bytes: usize,
    hash: [u8; 32],
    mark: WindowMark,
}

impl Window {
    /// A window that begins at a mark, to be filled with [`Window::record`].
    pub fn beginning(mark: WindowMark) -> Self {
        Self { hash: mark.floor_hash, mark, ..Self::default() }
    }

    /// Looks a request up.
    pub fn find(&self, id: RequestId) -> Option<&Remembered> {
        if cfg!(feature = "test-no-request-window") {
            return None;
        }
        let number = self.by_id.get(&id)?;
        self.requests.get(usize::try_from(number - self.mark.first).ok()?)
    }

    /// Records a request and forgets the oldest ones past the bounds. Gives its number.
    pub fn record(&mut self, request: Remembered) -> u64 {
        let number = self.mark.first + self.requests.len() as u64;
        self.hash = extend(&self.hash, &request);
        // Before it is added, or the queue would take twice the memory for a single request too many.
        self.forget(WINDOW_REQUESTS - 1, WINDOW_BYTES.saturating_sub(request.response.len()));
        self.bytes += request.response.len();
        self.by_id.insert(request.id, number);
        self.requests.push_back(request);
        // One whose response is past the bound by itself is not kept at all.
        self.forget(WINDOW_REQUESTS, WINDOW_BYTES);
        number
    }

    /// Forgets the oldest requests until no more than so many of them and so many bytes are left.
    fn forget(&mut self, requests: usize, bytes: usize) {
        while self.requests.len() > requests || self.bytes > bytes {
            let Some(oldest) = self.requests.pop_front() else { break };
            self.bytes -= oldest.response.len();
            // Only a test that switches lookups off records an id twice.
            if self.by_id.get(&oldest.id) == Some(&self.mark.first) {
                self.by_id.remove(&oldest.id);
            }
            self.mark.floor_hash = extend(&self.mark.floor_hash, &oldest);
            self.mark.forgotten_index = oldest.version.index;
            self.mark.first += 1;
        }
    }

    /// Log index of the oldest request remembered; 0 if none was ever forgotten.
    pub fn floor(&self) -> u64 {
        match self.requests.front() {
            _ if self.mark.first == 0 => 0,
            Some(oldest) => oldest.version.index,
            None => self.mark.forgotten_index + 1,
        }
    }

    /// Where the window begins.
    pub fn mark(&self) -> WindowMark {
        self.mark
    }

    /// Running hash over all requests ever recorded.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// The number that the next request gets.
    pub fn next(&self) -> u64 {
        self.mark.first + self.requests.len() as u64
    }

    /// A copy of the requests, oldest first, sharing their responses.
    pub fn freeze(&self) -> Vec<Remembered> {
        self.requests.iter().cloned().collect()
    }

    /// Checks what was loaded against what was saved beside it.
    pub fn verify(&self, hash: &[u8; 32], next: u64) -> Result<(), StorageError> {
        if &self.hash == hash && self.next() == next {
            Ok(())
        } else {
            Err(StorageError::damaged("the request window is not the one that was saved"))
        }
    }
}

fn extend(hash: &[u8; 32], request: &Remembered) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"keystead/v1/request\0");
    hasher.update(hash);
    hasher.update(&request.id.0);
    hasher.update(&request.version.to_bytes());
    hasher.update(&(request.response.len() as u64).to_be_bytes());
    hasher.update(&request.response);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(n: u64, size: usize) -> Remembered {
        let mut id = [1; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        let version = Version { generation: 1, index: n };
        Remembered { id: RequestId(id), version, response: vec![n as u8; size].into() }
    }

    #[test]
    #[cfg(not(feature = "test-no-request-window"))]
    fn the_oldest_requests_are_forgotten_past_the_count() {
        let mut window = Window::default();
        for n in 1..=WINDOW_REQUESTS as u64 {
            window.record(request(n, 0));
        }
        assert_eq!(window.floor(), 0);
        assert!(window.find(request(1, 0).id).is_some());
        window.record(request(WINDOW_REQUESTS as u64 + 1, 0));
        assert_eq!(window.floor(), 2);
        assert!(window.find(request(1, 0).id).is_none());
        assert_eq!(window.find(request(2, 0).id), Some(&request(2, 0)));
    }

    #[test]
    fn the_oldest_requests_are_forgotten_past_the_bytes() {
        let mut window = Window::default();
        for n in 1..=17 {
            window.record(request(n, 1 << 20));
        }
        assert_eq!((window.freeze().len(), window.floor()), (16, 2));
    }

    #[test]
    fn a_window_rebuilt_from_its_mark_has_the_same_hash() {
        let mut window = Window::default();
        for n in 1..=20 {
            window.record(request(n, 1 << 20));
        }
        let mut again = Window::beginning(window.mark());
        for request in window.freeze() {
            again.record(request);
        }
        again.verify(&window.hash(), window.next()).expect("the same");
        again.record(request(99, 1));
        assert!(again.verify(&window.hash(), window.next()).is_err());
    }

    #[test]
    fn an_encoded_request_comes_back_whole_or_not_at_all() {
        let mut bytes = Vec::new();
        request(7, 30).encode(&mut bytes);
        assert_eq!(bytes.len(), request(7, 30).encoded_bytes());
        for cut in 0..bytes.len() {
            assert_eq!(Remembered::decode(&mut Bytes::copy_from_slice(&bytes[..cut])), None);
        }
        assert_eq!(Remembered::decode(&mut Bytes::from(bytes)), Some(request(7, 30)));
    }
}
