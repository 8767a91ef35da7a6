//! Arithmetic in GF(2^8) without a branch or a table index that depends on an operand.
//!
//! The field is that of the `sharks` crate, reduced by x^8 + x^4 + x^3 + x^2 + 1 (0x11d), so that shares of either
//! open with the other. (AES and Vault use 0x11b.) Addition and subtraction are `^`.

use std::hint::black_box;

const REDUCTION: u8 = 0x1d;

/// All ones if the lowest bit of `bit` is set, else zero.
///
/// `black_box` keeps the compiler from seeing that there are only two values, which it could branch on.
fn mask(bit: u8) -> u8 {
    black_box((bit & 1).wrapping_neg())
}

/// The product of `a` and `b`.
pub(super) fn mul(a: u8, b: u8) -> u8 {
    (0..8).rev().fold(0, |product: u8, bit| {
        let doubled = (product << 1) ^ (REDUCTION & mask(product >> 7));
        doubled ^ (a & mask(b >> bit))
    })
}

/// The inverse of `a`, or 0 for 0: `a` to the power of 254, by a fixed chain of squarings.
pub(super) fn invert(a: u8) -> u8 {
    // 254 = 2 + 4 + 8 + 16 + 32 + 64 + 128.
    let mut power = a;
    (1..8).fold(1, |inverse, _| {
        power = mul(power, power);
        mul(inverse, power)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slow, obvious way: multiply as polynomials, then reduce.
    fn reference(a: u8, b: u8) -> u8 {
        let mut product = 0_u16;
        for bit in 0..8 {
            if b >> bit & 1 == 1 {
                product ^= u16::from(a) << bit;
            }
        }
        for bit in (8..16).rev() {
            if product >> bit & 1 == 1 {
                product ^= 0x11d << (bit - 8);
            }
        }
        u8::try_from(product).unwrap()
    }

    #[test]
    fn every_product_is_that_of_the_polynomials() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(mul(a, b), reference(a, b), "{a} * {b}");
            }
        }
    }

    #[test]
    fn every_element_but_zero_times_its_inverse_is_one() {
        assert_eq!(invert(0), 0);
        for a in 1..=255 {
            assert_eq!(mul(a, invert(a)), 1, "{a}");
        }
    }

    #[test]
    fn field_is_that_of_sharks_and_not_of_aes() {
        // From the table of the sharks crate: 2^8 = 0x1d.
        assert_eq!(mul(0x80, 2), 0x1d);
    }
}
