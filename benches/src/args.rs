//! The command line.

use std::{path::PathBuf, time::Duration};

use crate::Result;

/// What is to be measured, and how.
pub struct Args {
    /// Short windows and few connections' counts.
    pub quick: bool,
    /// Lines of JSON in place of a table.
    pub json: bool,
    /// Fail where a figure is missed.
    pub strict: bool,
    /// How long one rate is measured.
    pub window: Duration,
    /// How many secrets a filled node holds, where it is not what the figure is due for.
    pub secrets: Option<usize>,
    /// The server; the one beside this program unless told otherwise.
    pub binary: PathBuf,
    names: Vec<String>,
}

impl Args {
    /// Reads the words after the program's name.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut args = Self {
            quick: false,
            json: false,
            strict: false,
            window: Duration::ZERO,
            secrets: None,
            binary: std::env::current_exe()?.with_file_name("keystead"),
            names: Vec::new(),
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => args.quick = true,
                "--strict" => args.strict = true,
                "--format=json" | "-format=json" => args.json = true,
                "--seconds" => {
                    args.window = Duration::from_secs_f64(words.next().ok_or("--seconds NUMBER")?.parse()?);
                }
                "--secrets" => args.secrets = Some(words.next().ok_or("--secrets NUMBER")?.parse()?),
                "--binary" => args.binary = words.next().ok_or("--binary FILE")?.into(),
                flag if flag.starts_with('-') => return Err(format!("{flag} is not known").into()),
                _ => args.names.push(word),
            }
        }
        if args.window.is_zero() {
            args.window = if args.quick { Duration::from_secs(1) } else { Duration::from_secs(5) };
        }
        Ok(args)
    }

    /// Whether a figure was asked for by a part of its name.
    pub fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str()))
    }

    /// Whether a figure was asked for by name, where it is too long to be measured unasked in a quick run.
    pub fn wants_long(&self, name: &str) -> bool {
        self.wants(name) && !(self.quick && self.names.is_empty())
    }
}
