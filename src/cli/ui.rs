//! Everything a command prints or asks goes through here.

use std::io::{self, BufRead, IsTerminal, Write};

use zeroize::Zeroizing;

use super::environment::Environment;
use super::prompt;

/// Results go to one stream, errors and warnings to the other; questions are asked on either.
///
/// Failures to write are remembered, not raised: a reader that has seen enough (`| head`) is no error of
/// the command. [`Ui::finish`] tells the two apart.
pub struct Ui<'a> {
    out: Box<dyn Write + 'a>,
    err: Box<dyn Write + 'a>,
    input: Box<dyn BufRead + 'a>,
    out_is_terminal: bool,
    err_is_terminal: bool,
    colour: bool,
    input_is_process: bool,
    failure: Option<io::Error>,
}

const PLAIN: &str = "\x1b[0m";
const RED: &str = "\x1b[91m";
const YELLOW: &str = "\x1b[93m";

impl Ui<'static> {
    /// The process's own streams.
    pub fn of_process(environment: &Environment) -> Ui<'static> {
        let out_is_terminal = io::stdout().is_terminal();
        let colour = out_is_terminal && environment.setting("CLI_NO_COLOR").is_none();
        Ui {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            input: Box::new(io::BufReader::new(io::stdin())),
            out_is_terminal,
            err_is_terminal: io::stderr().is_terminal(),
            colour,
            input_is_process: true,
            failure: None,
        }
    }
}

impl<'a> Ui<'a> {
    /// Streams of the caller's choice, none of them a terminal.
    pub fn new(input: impl BufRead + 'a, out: impl Write + 'a, err: impl Write + 'a) -> Ui<'a> {
        Ui {
            out: Box::new(out),
            err: Box::new(err),
            input: Box::new(input),
            out_is_terminal: false,
            err_is_terminal: false,
            colour: false,
            input_is_process: false,
            failure: None,
        }
    }

    /// Prints a result and a newline.
    pub fn output(&mut self, text: &str) {
        let text = self.coloured(PLAIN, text);
        self.write_out(&format!("{text}\n"));
    }

    /// Prints a result that a program may read: no colour, and a newline for people only.
    pub fn output_raw(&mut self, text: &str) {
        let newline = if self.out_is_terminal { "\n" } else { "" };
        self.write_out(&format!("{text}{newline}"));
    }

    /// Prints bytes as they are.
    pub fn output_bytes(&mut self, bytes: &[u8]) {
        let written = self.out.write_all(bytes).and_then(|()| self.out.flush());
        self.remember(written);
    }

    /// Prints an error and a newline.
    pub fn error(&mut self, text: &str) {
        let text = self.coloured(RED, text);
        self.write_err(&format!("{text}\n"));
    }

    /// Prints a warning and a newline, on the stream of errors.
    pub fn warn(&mut self, text: &str) {
        let text = self.coloured(YELLOW, text);
        self.write_err(&format!("{text}\n"));
    }

    /// Prints warnings that came with an answer, in the block that Vault's command line prints.
    pub fn server_warnings(&mut self, warnings: &[String]) {
        if !warnings.is_empty() {
            self.warn("WARNING! The following warnings were returned from Vault:\n");
        }
        for warning in warnings {
            self.warn(&wrap(&format!("* {warning}"), 2));
            self.warn("");
        }
    }

    /// Prints help or another plain text, without colour, on the stream of errors.
    pub fn error_plain(&mut self, text: &str) {
        self.write_err(&format!("{text}\n"));
    }

    /// Says how far something long has come, in the place of what was said last: on a terminal, and nowhere else.
    pub fn progress(&mut self, text: &str) {
        if self.err_is_terminal {
            self.write_err(&format!("\r\x1b[K{text}"));
        }
    }

    /// All of the standard input.
    ///
    /// # Errors
    /// What reading it gives.
    pub fn read_input(&mut self) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut bytes = Zeroizing::new(Vec::new());
        self.input.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Asks a question on the stream of results and reads one line; nothing at the end of the input.
    ///
    /// # Errors
    /// What reading gives.
    pub fn ask(&mut self, question: &str) -> io::Result<String> {
        self.write_out(question);
        let mut answer = String::new();
        self.input.read_line(&mut answer)?;
        if !answer.ends_with('\n') {
            self.write_out("\n");
        }
        Ok(answer)
    }

    /// Asks for a secret on the terminal, typed unseen. The question goes to the stream of results if
    /// `on_output`, else to that of errors; a newline follows the answer.
    ///
    /// # Errors
    /// When the standard input is no terminal, or the question is broken off.
    pub fn ask_hidden(&mut self, question: &str, on_output: bool) -> io::Result<Zeroizing<String>> {
        if on_output {
            self.write_out(question)
        } else {
            self.write_err(question)
        }
        let answer = if self.input_is_process { prompt::read_hidden() } else { Err(prompt::no_terminal()) };
        if on_output {
            self.write_out("\n")
        } else {
            self.write_err("\n")
        }
        answer
    }

    /// The exit code, once everything is printed: a result that could not be written (a full disk) turns
    /// success into failure, a closed pipe does not.
    pub fn finish(&mut self, code: i32) -> i32 {
        let flushed = self.out.flush();
        self.remember(flushed);
        match self.failure.take() {
            Some(error) if code == 0 && error.kind() != io::ErrorKind::BrokenPipe => {
                self.write_err(&format!("Error writing the output: {error}\n"));
                1
            }
            _ => code,
        }
    }

    fn coloured(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn write_out(&mut self, text: &str) {
        self.output_bytes(text.as_bytes());
    }

    fn write_err(&mut self, text: &str) {
        // There is nowhere left to say that errors cannot be printed.
        let _ = self.err.write_all(text.as_bytes()).and_then(|()| self.err.flush());
    }

    fn remember(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
    }
}

/// Breaks paragraphs into lines of at most 78 characters, each behind `indent` spaces.
pub fn wrap(text: &str, indent: usize) -> String {
    const WIDTH: usize = 78;
    let margin = " ".repeat(indent);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = margin.clone();
        for word in paragraph.split(' ') {
            let begun = line.len() > indent;
            if begun && line.chars().count() + 1 + word.chars().count() > WIDTH {
                lines.push(std::mem::replace(&mut line, format!("{margin}{word}")));
            } else {
                if begun {
                    line.push(' ');
                }
                line.push_str(word);
            }
        }
        lines.push(line);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(self.0))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is() {
        let mut ui = Ui::new(io::empty(), Failing(io::ErrorKind::BrokenPipe), io::sink());
        ui.output("x");
        assert_eq!(ui.finish(0), 0);
        let mut ui = Ui::new(io::empty(), Failing(io::ErrorKind::StorageFull), io::sink());
        ui.output("x");
        assert_eq!(ui.finish(0), 1);
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        let wrapped = wrap(&"word ".repeat(20), 2);
        assert!(wrapped.lines().count() == 2 && wrapped.lines().all(|line| line.starts_with("  word")));
        assert!(wrapped.lines().all(|line| line.trim_end().len() <= 78));
    }
}
