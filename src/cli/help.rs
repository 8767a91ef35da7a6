//! Help texts, put together from the table of commands.

use super::commands;
use super::flags::{Flag, Kind};
use super::{Command, Program};

/// The list of all commands of one word.
pub fn top_level(program: Program) -> String {
    let name = program.command();
    let commands =
        commands::all().filter(|command| !command.name.contains(' ')).map(|c| (c.name, c.synopsis));
    format!("Usage: {name} <command> [args]\n\nCommands:\n{}", listing(commands))
}

/// A command's usage, its paragraphs, and its flags or subcommands.
pub fn of_command(program: Program, command: &Command) -> String {
    let name = program.command();
    let mut text = match command.run {
        Some(_) => format!("Usage: {name} {} {}\n", command.name, command.arguments),
        None => format!("Usage: {name} {} <subcommand> [options] [args]\n", command.name),
    };
    for line in command.about.replace("{program}", name).lines() {
        let margin = if line.is_empty() { "" } else { "  " };
        text.push_str(&format!("\n{margin}{line}"));
    }
    let front = format!("{} ", command.name);
    let children: Vec<_> = commands::all()
        .filter_map(|child| child.name.strip_prefix(&front).map(|name| (name, child.synopsis)))
        .filter(|(name, _)| !name.contains(' '))
        .collect();
    if !children.is_empty() {
        text.push_str(&format!("\n\nSubcommands:\n{}", listing(children.into_iter())));
    }
    for (title, flags) in [
        (if command.calls_api { "HTTP Options" } else { "Output Options" }, command.shared_flags()),
        ("Command Options", command.flags),
    ] {
        if command.run.is_some() && !flags.is_empty() {
            text.push_str(&format!("\n\n{title}:\n"));
            text.extend(flags.iter().map(option));
        }
    }
    text.trim_end().to_owned()
}

fn listing<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let rows: Vec<_> = rows.collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(12);
    rows.iter()
        .map(|(name, synopsis)| format!("    {name:<width$}  {synopsis}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn option(flag: &Flag) -> String {
    let value = match flag.kind {
        Kind::Bool => "",
        Kind::Text | Kind::List | Kind::CommaList => "=<string>",
        Kind::Int => "=<int>",
        Kind::Duration => "=<duration>",
        Kind::Map => "=<key=value>",
    };
    format!("\n  -{}{value}\n      {}\n", flag.name, flag.usage)
}
