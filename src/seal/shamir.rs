//! Shamir's secret sharing (Communications of the ACM 22, 1979) of 32 bytes, in constant time.
//!
//! Each byte is the value at 0 of a polynomial of its own whose other coefficients are uniformly random, zero
//! included. (A leading coefficient that is never zero, as in RUSTSEC-2024-0398, would tell holders of one share
//! too few what the secret is not.) With a threshold of one, every share's `y` is the secret itself.

use zeroize::Zeroizing;

use super::gf256::{invert, mul};
use crate::secret::{ShareBytes, fill_key};

/// One point on all 32 polynomials: the core of a share.
pub struct SharePoint {
    /// Where; public, and never 0, for that is where the secret is.
    pub x: u8,
    /// The values there.
    pub y: ShareBytes,
}

/// Why a secret cannot be split so. The texts are Vault's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// No shares.
    #[error("shares must be at least one")]
    NoShares,
    /// A threshold of zero would be no threshold.
    #[error("threshold must be at least one")]
    NoThreshold,
    /// All shares together would not open it.
    #[error("threshold cannot be larger than shares")]
    ThresholdAboveShares,
}

/// Why shares cannot be put together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CombineError {
    /// There are none.
    #[error("no shares were given")]
    NoShares,
    /// A share says it is the secret itself, which no genuine one does.
    #[error("a share with x = 0 cannot be genuine")]
    ZeroX,
    /// Two shares are for the same point.
    #[error("share {x} was given twice")]
    RepeatedX {
        /// The point.
        x: u8,
    },
}

/// Splits `secret` into `shares` points, at x = 1, 2, ..., of which any `threshold` give it back.
///
/// # Errors
/// [`SplitError`] when the two numbers do not fit.
pub fn split(secret: &[u8; 32], shares: u8, threshold: u8) -> Result<Vec<SharePoint>, SplitError> {
    match (shares, threshold) {
        (0, _) => return Err(SplitError::NoShares),
        (_, 0) => return Err(SplitError::NoThreshold),
        _ if threshold > shares => return Err(SplitError::ThresholdAboveShares),
        _ => {}
    }
    // One polynomial per byte, the 32 coefficients of one power side by side, the highest power first.
    let mut coefficients = Zeroizing::new(vec![0; 32 * usize::from(threshold - 1)]);
    fill_key(&mut coefficients);
    let at = |x: u8| {
        let y = ShareBytes::filled(|y| {
            // Horner's rule; the secret is the coefficient of the zeroth power.
            for power in coefficients.chunks_exact(32).chain([&secret[..]]) {
                for (y, coefficient) in y.iter_mut().zip(power) {
                    *y = mul(*y, x) ^ coefficient;
                }
            }
        });
        SharePoint { x, y }
    };
    Ok((1..=shares).map(at).collect())
}

/// Gives back the secret from `points`, all of which are used.
///
/// Too few points, or a wrong one, give a wrong secret: only who knows a commitment to the right one can tell.
///
/// # Errors
/// [`CombineError`] when there are no points, one is at 0, or two are at the same place.
pub fn combine(points: &[SharePoint]) -> Result<Zeroizing<[u8; 32]>, CombineError> {
    if points.is_empty() {
        return Err(CombineError::NoShares);
    }
    for (n, point) in points.iter().enumerate() {
        if point.x == 0 {
            return Err(CombineError::ZeroX);
        }
        if points[..n].iter().any(|earlier| earlier.x == point.x) {
            return Err(CombineError::RepeatedX { x: point.x });
        }
    }
    let mut secret = Zeroizing::new([0; 32]);
    for point in points {
        let weight = weight_at_zero(point.x, points);
        for (secret, y) in secret.iter_mut().zip(point.y.expose()) {
            *secret ^= mul(weight, *y);
        }
    }
    Ok(secret)
}

/// The Lagrange basis polynomial of the point at `x`, at 0: the product of `xj / (xj - x)` over the other points.
fn weight_at_zero(x: u8, points: &[SharePoint]) -> u8 {
    let others = points.iter().map(|point| point.x).filter(|other| *other != x);
    others.fold(1, |weight, other| mul(weight, mul(other, invert(other ^ x))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sharks::{Share, Sharks};

    fn copy(points: &[&SharePoint]) -> Vec<SharePoint> {
        points.iter().map(|point| SharePoint { x: point.x, y: point.y.duplicate() }).collect()
    }

    fn to_sharks(point: &SharePoint) -> Share {
        Share::try_from(&[&[point.x], &point.y.expose()[..]].concat()[..]).unwrap()
    }

    fn from_sharks(share: &Share) -> SharePoint {
        let bytes = Vec::from(share);
        SharePoint { x: bytes[0], y: ShareBytes::from_bytes(bytes[1..].try_into().unwrap()) }
    }

    #[test]
    fn every_choice_of_enough_shares_gives_the_secret_and_none_of_too_few_does() {
        let secret: [u8; 32] = crate::secret::random_array();
        for threshold in 1..=5 {
            let points = split(&secret, 5, threshold).unwrap();
            assert_eq!(points.iter().map(|point| point.x).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
            for choice in 1_u32..32 {
                let chosen: Vec<_> = points.iter().filter(|point| choice >> (point.x - 1) & 1 == 1).collect();
                let combined = combine(&copy(&chosen)).unwrap();
                assert_eq!(*combined == secret, choice.count_ones() >= u32::from(threshold), "{choice:b}");
            }
        }
    }

    #[test]
    fn a_single_share_is_the_secret_itself() {
        let points = split(&[0xAB; 32], 1, 1).unwrap();
        assert_eq!((points.len(), points[0].x), (1, 1));
        assert_eq!(*points[0].y.expose(), [0xAB; 32]);
    }

    #[test]
    fn most_shares_and_highest_threshold_work() {
        let secret: [u8; 32] = crate::secret::random_array();
        let points = split(&secret, 255, 255).unwrap();
        assert_eq!(*combine(&points).unwrap(), secret);
        assert_ne!(*combine(&points[1..]).unwrap(), secret);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(split(&[0; 32], 0, 0).err().unwrap(), SplitError::NoShares);
        assert_eq!(split(&[0; 32], 5, 0).err().unwrap(), SplitError::NoThreshold);
        assert_eq!(split(&[0; 32], 5, 6).err().unwrap(), SplitError::ThresholdAboveShares);
    }

    #[test]
    fn zero_and_repeated_x_are_refused() {
        let point = |x| SharePoint { x, y: ShareBytes::random() };
        assert_eq!(combine(&[]).unwrap_err(), CombineError::NoShares);
        assert_eq!(combine(&[point(1), point(0)]).unwrap_err(), CombineError::ZeroX);
        assert_eq!(combine(&[point(0)]).unwrap_err(), CombineError::ZeroX);
        assert_eq!(combine(&[point(3), point(1), point(3)]).unwrap_err(), CombineError::RepeatedX { x: 3 });
    }

    #[test]
    fn coefficients_take_every_value_zero_included() {
        // The slope of a line through the secret byte 0 is its value at 1.
        let mut seen = [false; 256];
        for _ in 0..400 {
            for y in split(&[0; 32], 2, 2).unwrap()[0].y.expose() {
                seen[usize::from(*y)] = true;
            }
        }
        assert!(
            seen.iter().all(|seen| *seen),
            "12,800 draws miss one of 256 values about once in 10^19 runs"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn sharks_opens_what_was_split_here(secret: [u8; 32], threshold in 1_u8..=8, extra in 0_u8..=4) {
            let points = split(&secret, threshold + extra, threshold).unwrap();
            let shares: Vec<_> = points[usize::from(extra)..].iter().map(to_sharks).collect();
            prop_assert_eq!(Sharks(threshold).recover(&shares).unwrap(), secret);
        }

        #[test]
        fn what_sharks_split_opens_here(secret: [u8; 32], threshold in 1_u8..=8, skip in 0_usize..=200) {
            let points: Vec<_> = Sharks(threshold)
                .dealer(&secret)
                .skip(skip)
                .take(usize::from(threshold))
                .map(|share| from_sharks(&share))
                .collect();
            prop_assert_eq!(*combine(&points).unwrap(), secret);
        }
    }
}
