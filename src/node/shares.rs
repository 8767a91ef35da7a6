//! The shares entered so far.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    barrier::VaultId,
    seal::{Share, SharePoint, ShareTextError},
    secret::random_array,
};

/// One series of shares: from the first one to the threshold, or to a reset.
#[derive(Default)]
pub struct Progress {
    series: Option<Series>,
}

struct Series {
    vault_id: VaultId,
    generation: u32,
    nonce: String,
    points: Vec<SharePoint>,
}

impl Progress {
    /// Distinct shares given so far.
    pub fn count(&self) -> u32 {
        self.series.as_ref().map_or(0, |series| series.points.len() as u32)
    }

    /// Names the series; empty before the first share.
    pub fn nonce(&self) -> String {
        self.series.as_ref().map(|series| series.nonce.clone()).unwrap_or_default()
    }

    /// Forgets the shares.
    pub fn reset(&mut self) {
        self.series = None;
    }

    /// Takes a share that has been checked. A repeated one changes nothing. Returns all of them, and forgets
    /// them, once there are `threshold`.
    pub fn add(
        &mut self,
        vault_id: VaultId,
        generation: u32,
        share: Share,
        threshold: u8,
    ) -> Option<Vec<SharePoint>> {
        let same = |series: &Series| series.vault_id == vault_id && series.generation == generation;
        if !self.series.as_ref().is_some_and(same) {
            self.series = Some(Series { vault_id, generation, nonce: uuid(), points: Vec::new() });
        }
        let series = self.series.as_mut().expect("it was made above");
        if series.points.iter().all(|point| point.x != share.point.x) {
            series.points.push(share.point);
        }
        if series.points.len() < usize::from(threshold) {
            return None;
        }
        self.series.take().map(|series| series.points)
    }
}

/// When entered shares were reset lately, by who did not name their series.
#[derive(Default)]
pub struct Resets(VecDeque<Instant>);

impl Resets {
    /// Counts one more, unless there were too many within the last minute.
    pub fn may(&mut self, now: Instant) -> bool {
        const MOST: usize = 3;
        const WITHIN: Duration = Duration::from_secs(60);
        while self.0.front().is_some_and(|at| now.duration_since(*at) >= WITHIN) {
            self.0.pop_front();
        }
        let may = self.0.len() < MOST;
        if may {
            self.0.push_back(now);
        }
        may
    }
}

/// A random UUID (RFC 9562, version 4) in text.
pub fn uuid() -> String {
    let mut bytes: [u8; 16] = random_array();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    uuid_text(&bytes)
}

/// Sixteen bytes as a UUID is written.
pub fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What is wrong with a share's text, as Vault's clients expect to read it.
pub fn text_error(error: &ShareTextError) -> String {
    match error {
        ShareTextError::NotHexOrBase64 => "'key' must be a valid hex or base64 string".into(),
        ShareTextError::WrongLength { len } if *len < 33 => format!(
            "invalid key: key is shorter than minimum 33 bytes: a share has 48 bytes, or 33 without its wrapping, this one has {len}"
        ),
        ShareTextError::WrongLength { len } => format!(
            "invalid key: key is longer than maximum 48 bytes: a share has 48 bytes, or 33 without its wrapping, this one has {len}"
        ),
        other => format!("invalid key: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::ShareBytes;

    fn share(x: u8) -> Share {
        Share::new(VaultId([1; 16]), 1, SharePoint { x, y: ShareBytes::random() })
    }

    #[test]
    fn a_repeated_share_keeps_progress_and_nonce() {
        let mut progress = Progress::default();
        assert!(progress.add(VaultId([1; 16]), 1, share(1), 3).is_none());
        let nonce = progress.nonce();
        assert!(progress.add(VaultId([1; 16]), 1, share(1), 3).is_none());
        assert_eq!((progress.count(), progress.nonce()), (1, nonce));
    }

    #[test]
    fn the_threshold_hands_the_shares_over_and_forgets_them() {
        let mut progress = Progress::default();
        assert!(progress.add(VaultId([1; 16]), 1, share(1), 2).is_none());
        assert_eq!(progress.add(VaultId([1; 16]), 1, share(2), 2).unwrap().len(), 2);
        assert_eq!((progress.count(), progress.nonce()), (0, String::new()));
    }

    #[test]
    fn three_resets_a_minute_are_enough() {
        let (mut resets, start) = (Resets::default(), Instant::now());
        assert!((0..3).all(|_| resets.may(start)));
        assert!(!resets.may(start + Duration::from_secs(59)));
        assert!(resets.may(start + Duration::from_secs(60)));
    }

    #[test]
    fn shares_of_another_generation_begin_a_new_series() {
        let mut progress = Progress::default();
        assert!(progress.add(VaultId([1; 16]), 1, share(1), 3).is_none());
        assert!(progress.add(VaultId([1; 16]), 2, share(2), 3).is_none());
        assert_eq!(progress.count(), 1);
    }
}
