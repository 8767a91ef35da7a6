//! The table of commands, one file per family.

pub mod completion;
mod hsm;
mod kv;
mod logical;
mod login;
mod operator;
mod path_help;
mod print;
mod secrets;
pub mod server;
mod status;
mod tls;
mod unwrap;
pub mod version;
mod version_history;

use super::Command;

/// Every command, parents before their children.
pub fn all() -> impl Iterator<Item = &'static Command> {
    let families: [&'static [Command]; 15] = [
        completion::COMMANDS,
        logical::COMMANDS,
        hsm::COMMANDS,
        kv::COMMANDS,
        login::COMMANDS,
        operator::COMMANDS,
        path_help::COMMANDS,
        print::COMMANDS,
        secrets::COMMANDS,
        server::COMMANDS,
        status::COMMANDS,
        tls::COMMANDS,
        unwrap::COMMANDS,
        version::COMMANDS,
        version_history::COMMANDS,
    ];
    families.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_child_has_its_parent() {
        let mut names = HashSet::new();
        for command in all() {
            assert!(names.insert(command.name), "{} twice", command.name);
            if let Some((parent, _)) = command.name.rsplit_once(' ') {
                assert!(names.contains(parent), "{} before {parent}", command.name);
            }
        }
    }

    #[test]
    fn no_command_has_a_flag_twice() {
        for command in all() {
            let mut names = HashSet::new();
            for flag in command.all_flags() {
                assert!(names.insert(flag.name), "{} of {}", flag.name, command.name);
            }
        }
    }
}
