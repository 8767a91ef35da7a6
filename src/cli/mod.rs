//! The command line: Vault's commands, flags, outputs and exit codes.
//!
//! [`main`] finds the command in one table ([`commands::all`]), parses its flags, and calls its function
//! with an [`Invocation`]. A new command is a new file under `commands/` with its entries in that table. A
//! command prints through [`ui::Ui`] only and reaches a server through [`session::Session`] only, so that
//! tests run whole command lines in process.
//!
//! Exit codes: 0 success, 1 a mistake on this side, 2 an error from the server, 127 no such command.

#![cfg_attr(test, allow(clippy::unwrap_used))] // in a test, a panic is the report

pub mod api_error;
pub mod certificate;
pub mod commands;
pub mod data;
pub mod duration;
pub mod environment;
pub mod flags;
mod help;
pub mod output;
mod prompt;
pub mod secret;
pub mod session;
mod settings;
mod shown;
pub mod time;
pub mod token_helper;
pub mod ui;

use std::ffi::OsString;

pub use commands::server::ServerArgs;

use crate::seal;
use api_error::ApiError;
use environment::Environment;
use flags::{Flag, Kind, Parsed};
use output::Format;
use session::Session;
use ui::Ui;

/// Runs one command line, program name first, and gives the exit code.
pub fn main(args: Vec<OsString>) -> i32 {
    // A role of this program and no command: whoever starts it by hand has no socket to offer.
    if args.len() == 2 && args[1] == seal::HELPER_ROLE {
        return seal::serve_helper();
    }
    let environment = Environment::of_process();
    let mut ui = Ui::of_process(&environment);
    let mut texts = Vec::with_capacity(args.len());
    for (at, arg) in args.into_iter().enumerate() {
        match arg.into_string() {
            Ok(text) => texts.push(text),
            Err(_) => {
                ui.error(&format!(
                    "Argument {at} is not valid UTF-8; put such a value into a file and use @file"
                ));
                return 1;
            }
        }
    }
    let code = run(&texts, &environment, &mut ui);
    ui.finish(code)
}

/// The name this program was started under; texts name it, and `version` answers for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Under its own name.
    Keystead,
    /// As `vault`, by a link or a copy.
    Vault,
    /// As `bao`.
    Bao,
}

impl Program {
    fn of(arg0: Option<&String>) -> Program {
        let name = arg0.and_then(|arg0| arg0.rsplit('/').next()).unwrap_or_default();
        match name {
            "vault" => Program::Vault,
            "bao" => Program::Bao,
            _ => Program::Keystead,
        }
    }

    /// The name as one types it.
    pub fn command(self) -> &'static str {
        match self {
            Program::Keystead => "keystead",
            Program::Vault => "vault",
            Program::Bao => "bao",
        }
    }
}

/// What is done in place of a command's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// They are sent.
    Nothing,
    /// The first one is printed as a curl command.
    Curl,
    /// The policy it needs is printed.
    Policy,
}

/// How a command ended: the exit code either way, `Err` where it stopped early, its message printed.
pub type Outcome = Result<i32, i32>;

/// One entry of the table of commands.
pub struct Command {
    /// The words that name it: `kv put`.
    pub name: &'static str,
    /// One line for the lists of commands.
    pub synopsis: &'static str,
    /// What follows the name in its usage: `[options] PATH [K=V...]`.
    pub arguments: &'static str,
    /// The paragraphs of its help.
    pub about: &'static str,
    /// Its own flags.
    pub flags: &'static [Flag],
    /// Whether it calls the API, and so has the flags for that too.
    pub calls_api: bool,
    /// Whether it has `-format` although it calls no API.
    pub prints_formats: bool,
    /// Whether its arguments are data, among which a leading dash is nothing unusual.
    pub takes_data: bool,
    /// The exit code for flags that it does not have; 1 but for a few.
    pub usage_code: i32,
    /// Does it; `None` for a mere parent of other commands.
    pub run: Option<fn(&mut Invocation<'_, '_>) -> Outcome>,
}

impl Command {
    /// A command without flags of its own that calls the API; the others change what they need.
    pub const DEFAULT: Command = Command {
        name: "",
        synopsis: "",
        arguments: "[options]",
        about: "",
        flags: &[],
        calls_api: true,
        prints_formats: false,
        takes_data: false,
        usage_code: 1,
        run: None,
    };

    fn all_flags(&self) -> Vec<Flag> {
        self.flags.iter().chain(self.shared_flags()).copied().collect()
    }

    /// The flags it shares with other commands.
    fn shared_flags(&self) -> &'static [Flag] {
        match (self.calls_api, self.prints_formats) {
            (true, _) => settings::HTTP_FLAGS,
            (false, true) => settings::FORMAT_FLAGS,
            (false, false) => &[],
        }
    }
}

/// A command about to run.
pub struct Invocation<'a, 'u> {
    /// Where it prints.
    pub ui: &'a mut Ui<'u>,
    /// What it was started in.
    pub environment: &'a Environment,
    /// The name it was started under.
    pub program: Program,
    /// Its flags.
    pub flags: Parsed,
    /// Its positional arguments.
    pub args: Vec<String>,
    /// How its result is shown.
    pub format: Format,
    /// What is done in place of requests.
    pub instead: Instead,
}

impl<'u> Invocation<'_, 'u> {
    /// Opens a session, or says why not and gives the exit code.
    ///
    /// # Errors
    /// The exit code.
    pub fn session(&mut self) -> Result<Session, i32> {
        Session::open(self).map_err(|why| self.fail(&why))
    }

    /// Refuses any number of arguments but this.
    ///
    /// # Errors
    /// The exit code.
    pub fn expect_args(&mut self, expected: usize) -> Result<(), i32> {
        let got = self.args.len();
        let problem = match got.cmp(&expected) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Less => "Not enough",
            std::cmp::Ordering::Greater => "Too many",
        };
        Err(self.fail(&format!("{problem} arguments (expected {expected}, got {got})")))
    }

    /// Prints a mistake on this side and gives its exit code.
    pub fn fail(&mut self, text: &str) -> i32 {
        self.ui.error(text);
        1
    }

    /// Prints an API error behind what was being done, and gives the exit code, 2; where the request was to
    /// be shown and not sent, prints that, and gives 0.
    pub fn refused(&mut self, doing: &str, error: &ApiError) -> i32 {
        match error {
            ApiError::Shown(text) => {
                self.ui.output(text);
                0
            }
            _ if doing.is_empty() => {
                self.ui.error(&error.to_string());
                2
            }
            _ => {
                self.ui.error(&format!("{doing}: {error}"));
                2
            }
        }
    }

    /// Prints a line of success, for people only: JSON and YAML say nothing where there is no data.
    pub fn success(&mut self, text: &str) -> i32 {
        if self.format == Format::Table {
            self.ui.output(text);
        }
        0
    }

    /// The interface and the format together, for the printing functions.
    pub fn printer(&mut self) -> (&mut Ui<'u>, Format) {
        (&mut *self.ui, self.format)
    }
}

/// The words of a command line, sorted out before any flag is parsed.
struct CommandLine {
    command: Option<&'static Command>,
    unknown: bool,
    arguments: Vec<String>,
    help: bool,
    version: bool,
    completion: bool,
    early_flags: bool,
}

/// Runs a command line in the given surroundings. [`main`] without the process.
pub fn run(args: &[String], environment: &Environment, ui: &mut Ui<'_>) -> i32 {
    let program = Program::of(args.first());
    let line = sort_out(args.get(1..).unwrap_or_default());
    if line.version {
        ui.output(&commands::version::line(program));
        return 0;
    }
    if line.completion {
        ui.output(&commands::completion::install_hint(program.command()));
        return 0;
    }
    let Some(command) = line.command else {
        let usage = help::top_level(program);
        if line.help && !line.unknown {
            ui.output(&usage);
            return 0;
        }
        ui.error_plain(&usage);
        return 127;
    };
    let help = || help::of_command(program, command);
    if line.help {
        ui.output(&help());
        return 0;
    }
    if line.early_flags {
        let front = "Invalid flags before the subcommand. If these flags are for\n\
                     the subcommand, please put them after the subcommand.\n";
        ui.error_plain(&format!("{front}\n{}", help()));
        return 1;
    }
    let Some(function) = command.run else {
        ui.error_plain(&help());
        return 1;
    };
    match invocation(command, program, line.arguments, environment, ui) {
        Ok(mut invocation) => function(&mut invocation).unwrap_or_else(|code| code),
        Err(()) => command.usage_code,
    }
}

fn sort_out(args: &[String]) -> CommandLine {
    let mut line = CommandLine {
        command: None,
        unknown: false,
        arguments: Vec::new(),
        help: false,
        version: false,
        completion: false,
        early_flags: false,
    };
    let mut found_at = None;
    for (at, arg) in args.iter().enumerate() {
        match arg.as_str() {
            "--" => break,
            "-autocomplete-install" | "-autocomplete-uninstall" if found_at.is_none() => {
                line.completion = true;
            }
            "-h" | "-help" | "--help" => line.help = true,
            _ if found_at.is_some() => {}
            "-v" | "-version" | "--version" => line.version = true,
            _ if arg.starts_with('-') => line.early_flags = true,
            "" => {}
            _ => found_at = Some(at),
        }
    }
    let Some(at) = found_at else { return line };
    let words = &args[at..];
    // The longest name wins: "kv put" over "kv".
    let named = |command: &&Command| {
        let name: Vec<_> = command.name.split(' ').collect();
        words.len() >= name.len() && name.iter().zip(words).all(|(name, word)| name == word)
    };
    line.command = commands::all().filter(named).max_by_key(|command| command.name.len());
    line.unknown = line.command.is_none();
    if let Some(command) = line.command {
        line.arguments = words[command.name.split(' ').count()..].to_vec();
    }
    line
}

/// The invocation that a command line stands for; without one, what is wrong with it is printed.
fn invocation<'a, 'u>(
    command: &'static Command,
    program: Program,
    arguments: Vec<String>,
    environment: &'a Environment,
    ui: &'a mut Ui<'u>,
) -> Result<Invocation<'a, 'u>, ()> {
    let named = found_anywhere(&arguments, "format", true)
        .or_else(|| environment.non_empty("FORMAT").map(str::to_owned));
    let has_format = command.calls_api || command.prints_formats;
    let format = if has_format { named.unwrap_or_default() } else { String::new() };
    let Some(format) = (if format.is_empty() { Some(Format::Table) } else { Format::parse(&format) }) else {
        ui.error(&format!("Invalid output format: {}", format.to_ascii_lowercase()));
        return Err(());
    };
    let mut flags = Parsed::parse(&command.all_flags(), &arguments).map_err(|why| ui.error(&why))?;
    let args = std::mem::take(&mut flags.rest);
    warn_of_late_flags(command, &args, ui);
    if format == Format::Raw && !command.has_raw_format() {
        ui.error("This command does not support the -format=raw option.");
        return Err(());
    }
    let instead = if found_anywhere(&arguments, "output-curl-string", false).is_some() {
        Instead::Curl
    } else if found_anywhere(&arguments, "output-policy", false).is_some() {
        Instead::Policy
    } else {
        Instead::Nothing
    };
    Ok(Invocation { ui, environment, program, flags, args, format, instead })
}

impl Command {
    fn has_raw_format(&self) -> bool {
        self.name == "read"
    }
}

/// Looks for one of the flags that count wherever they stand, even behind the positional arguments.
fn found_anywhere(arguments: &[String], name: &str, with_value: bool) -> Option<String> {
    let mut found = None;
    let mut arguments = arguments.iter().take_while(|argument| *argument != "--");
    while let Some(argument) = arguments.next() {
        let body = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
        let Some(rest) = body.and_then(|body| body.strip_prefix(name)) else { continue };
        match (rest, rest.strip_prefix('=')) {
            ("", _) if with_value => found = arguments.next().cloned().or(found),
            ("", _) => found = Some(String::new()),
            (_, Some(value)) if with_value => found = Some(value.to_owned()),
            (_, Some(value)) if flags::parse_bool(value) == Ok(true) => found = Some(String::new()),
            _ => {}
        }
    }
    found
}

/// Says that flags behind the first positional argument are not seen. Where arguments are data, only what
/// cannot be data is meant; the flags of [`found_anywhere`] are seen.
fn warn_of_late_flags(command: &Command, args: &[String], ui: &mut Ui<'_>) {
    let global = |arg: &str| {
        let name = arg.trim_start_matches('-').split('=').next().unwrap_or_default();
        matches!(name, "format" | "output-curl-string" | "output-policy")
    };
    let late: Vec<_> = args
        .iter()
        .filter(|arg| arg.starts_with('-') && *arg != "-" && !global(arg))
        .filter(|arg| !(command.takes_data && arg.contains('=')))
        .map(String::as_str)
        .collect();
    if !late.is_empty() {
        ui.warn(&format!(
            "Command flags must be provided before positional arguments. The following arguments will not be \
             parsed as flags: [{}]",
            late.join(",")
        ));
    }
    if command.takes_data && args.iter().skip(1).any(|arg| arg.starts_with("-format=")) {
        ui.warn("WARNING! The argument -format=... behind the path is also stored as data, under the key \"-format\".");
    }
}

/// The flag that prints one field, of the commands that have it.
pub const FIELD: Flag = Flag::new("field", Kind::Text, "Print only this field, without a newline.");

#[cfg(test)]
mod tests;
