//! Reads a secret from the terminal without showing it.

use std::io::{self, Read};

use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use zeroize::Zeroizing;

/// The error of a prompt without anybody to ask.
pub fn no_terminal() -> io::Error {
    io::Error::other("file descriptor 0 is not a terminal")
}

/// Reads one line from the terminal at the standard input, echo off.
///
/// # Errors
/// [`no_terminal`], or `Interrupted` after Ctrl-C. The terminal is as before in every case.
pub fn read_hidden() -> io::Result<Zeroizing<String>> {
    if !termios::isatty(io::stdin()) {
        return Err(no_terminal());
    }
    let _restore = Silenced::new()?;
    let mut line = Line::default();
    let mut byte = Zeroizing::new([0_u8; 1]);
    let mut input = Terminal;
    loop {
        if input.read(&mut byte[..])? == 0 {
            return line.finish();
        }
        match line.push(byte[0])? {
            Progress::More => {}
            Progress::Done => return line.finish(),
        }
    }
}

/// The terminal, read byte by byte: a buffered reader would keep a copy that nobody wipes.
struct Terminal;

impl Read for Terminal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(io::stdin(), buffer)?)
    }
}

/// Echo, line editing and signals are off while this lives. Signals are off so that Ctrl-C cannot end the
/// process with the echo still off; it is read as a character instead.
struct Silenced {
    before: Termios,
}

impl Silenced {
    fn new() -> io::Result<Silenced> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        // What was typed ahead is kept: who answers by program may be faster than this call.
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &silent)?;
        Ok(Silenced { before })
    }
}

impl Drop for Silenced {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

enum Progress {
    More,
    Done,
}

/// What has been typed so far. The memory is taken once, so that growing leaves no copies behind.
struct Line(Zeroizing<Vec<u8>>);

/// Longer than any token or share; more is refused rather than cut.
const LONGEST: usize = 64 * 1024;

impl Default for Line {
    fn default() -> Line {
        Line(Zeroizing::new(Vec::with_capacity(LONGEST)))
    }
}

impl Line {
    fn push(&mut self, byte: u8) -> io::Result<Progress> {
        const CTRL_C: u8 = 3;
        const CTRL_D: u8 = 4;
        const BACKSPACE: u8 = 8;
        const CTRL_U: u8 = 21;
        const DELETE: u8 = 127;
        match byte {
            b'\r' | b'\n' | CTRL_D => return Ok(Progress::Done),
            CTRL_C => return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted")),
            CTRL_U => self.0.clear(),
            BACKSPACE | DELETE => while self.0.pop().is_some_and(is_continuation) {},
            _ if self.0.len() == LONGEST => {
                return Err(io::Error::other(format!("more than {LONGEST} characters were typed")));
            }
            _ => self.0.push(byte),
        }
        Ok(Progress::More)
    }

    fn finish(self) -> io::Result<Zeroizing<String>> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "what was typed is not UTF-8")),
        }
    }
}

/// Whether a byte is the second or a later one of a UTF-8 character.
fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> io::Result<String> {
        let mut line = Line::default();
        for key in keys {
            if matches!(line.push(*key)?, Progress::Done) {
                break;
            }
        }
        line.finish().map(|text| text.to_string())
    }

    #[test]
    fn a_line_is_edited_and_ended() {
        assert_eq!(typed(b"abx\x7fc\rrest").unwrap(), "abc");
        assert_eq!(typed("aü\x08b\n".as_bytes()).unwrap(), "ab");
        assert_eq!(typed(b"wrong\x15right\x04").unwrap(), "right");
    }

    #[test]
    fn ctrl_c_breaks_off() {
        assert_eq!(typed(b"abc\x03").unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
