//! Programs that alter valid inputs.
//!
//! The first byte of a program chooses a sample, the second how many alterations follow; below 16, the first byte
//! means that the rest of the program is the input itself, so that a coverage-guided engine can also write one
//! from nothing. A program that ends early reads zeros.

/// Longest input that is made.
const MAX_BYTES: usize = 256 * 1024;
/// Bytes from here on are a sample's number.
const FIRST_SAMPLE: u8 = 16;
/// Most alterations in one program.
const MAX_CHANGES: u8 = 8;

/// Numbers at which lengths, counts and versions are decided.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x0001_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x0001_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// The input that a program makes of `samples`.
#[must_use]
pub fn run(program: &[u8], samples: &[Vec<u8>]) -> Vec<u8> {
    let mut program = Program(program);
    let first = program.byte();
    if first < FIRST_SAMPLE {
        return program.0.to_vec();
    }
    let sample = |number: u8| &samples[usize::from(number) % samples.len()];
    let mut input = sample(first - FIRST_SAMPLE).clone();
    for _ in 0..program.byte() % (MAX_CHANGES + 1) {
        let at = program.below(input.len() + 1);
        match program.byte() % 12 {
            0 => set(&mut input, at, |byte| byte ^ (1 << (at % 8))),
            1 => {
                let new = program.byte();
                set(&mut input, at, |_| new);
            }
            2 => overwrite(&mut input, at, &(program.edge() as u32).to_be_bytes()),
            3 => overwrite(&mut input, at, &program.edge().to_be_bytes()),
            4 => input.truncate(at),
            5 => drop(input.drain(..at)),
            6 => drop(input.drain(at..at.saturating_add(program.short()).min(input.len()))),
            7 => insert(&mut input, at, &[program.byte()], 1),
            8 => {
                // A piece of the same input, or of it so often that it nests deeply.
                let end = at.saturating_add(program.short()).min(input.len());
                let piece = input[at..end].to_vec();
                let times = if program.byte().is_multiple_of(8) { program.below(20_000) } else { 1 };
                insert(&mut input, at, &piece, times);
            }
            9 => {
                let other = sample(program.byte());
                let from = program.below(other.len() + 1);
                let end = from.saturating_add(program.short()).min(other.len());
                insert(&mut input, at, &other[from..end], 1);
            }
            10 => {
                let other = sample(program.byte());
                input.truncate(at);
                input.extend_from_slice(&other[program.below(other.len() + 1)..]);
            }
            _ => {
                let count = program.short();
                let own = program.take(count).to_vec();
                insert(&mut input, at, &own, 1);
            }
        }
    }
    input
}

fn set(input: &mut [u8], at: usize, change: impl Fn(u8) -> u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = change(*byte);
    }
}

fn overwrite(input: &mut [u8], at: usize, bytes: &[u8]) {
    let end = (at + bytes.len()).min(input.len());
    let place = &mut input[at.min(end)..end];
    place.copy_from_slice(&bytes[..place.len()]);
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8], times: usize) {
    let room = MAX_BYTES.saturating_sub(input.len());
    let times = times.min(room.checked_div(piece.len()).unwrap_or(0));
    drop(input.splice(at..at, piece.repeat(times)));
}

struct Program<'p>(&'p [u8]);

impl<'p> Program<'p> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        let mut number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        if limit > 1 << 16 {
            number = number << 8 | usize::from(self.byte());
        }
        number % limit.max(1)
    }

    /// Mostly a few, at times many.
    fn short(&mut self) -> usize {
        match self.byte() {
            255 => self.below(MAX_BYTES),
            few => usize::from(few % 64) + 1,
        }
    }

    fn edge(&mut self) -> u64 {
        match self.byte() {
            small @ 128.. => u64::from(small - 128),
            number => EDGES[usize::from(number) % EDGES.len()],
        }
    }

    fn take(&mut self, count: usize) -> &'p [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Vec<u8>> {
        vec![b"0123456789".to_vec(), b"abc".to_vec()]
    }

    #[test]
    fn a_program_may_be_the_input_or_a_sample_as_it_is() {
        assert_eq!(run(b"\x00raw", &samples()), b"raw");
        assert_eq!(run(&[FIRST_SAMPLE, 0], &samples()), b"0123456789");
        assert_eq!(run(&[FIRST_SAMPLE + 1, 0], &samples()), b"abc");
        assert_eq!(run(&[], &samples()), b"");
    }

    #[test]
    fn alterations_do_what_they_say() {
        let one = |kind: u8, at: u8, rest: &[u8]| {
            run(&[&[FIRST_SAMPLE, 1, 0, at, kind][..], rest].concat(), &samples())
        };
        assert_eq!(one(1, 2, b"x"), b"01x3456789");
        assert_eq!(one(2, 8, &[5]), b"01234567\x00\x00", "cut at the end");
        assert_eq!(one(4, 3, b""), b"012");
        assert_eq!(one(5, 3, b""), b"3456789");
        assert_eq!(one(6, 3, &[1]), b"01256789");
        assert_eq!(one(8, 0, &[1, 8, 0, 3]), b"0101010123456789");
        assert_eq!(one(9, 1, &[1, 0, 0, 1]), b"0ab123456789");
        assert_eq!(one(10, 1, &[1, 0, 2]), b"0c");
        assert_eq!(one(11, 10, b"\x01yz"), b"0123456789yz");
    }

    #[test]
    fn no_program_makes_more_than_the_longest_input() {
        let repeat = [&[FIRST_SAMPLE, 8][..], &[0, 0, 8, 63, 8, 0xff, 0xff].repeat(8)].concat();
        let input = run(&repeat, &samples());
        assert!(input.len() > MAX_BYTES / 2 && input.len() <= MAX_BYTES, "{}", input.len());
    }
}
