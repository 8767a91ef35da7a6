//! The table of commands, one file per family.

mod kv;
mod logical;
mod login;
mod operator;
mod print;
mod secrets;
pub mod server;
mod status;
mod tls;
pub mod version;

use super::Command;

/// Every command, parents before their children.
pub fn all() -> impl Iterator<Item = &'static Command> {
    let families: [&'static [Command]; 10] = [
        logical::COMMANDS,
        kv::COMMANDS,
        login::COMMANDS,
        operator::COMMANDS,
        print::COMMANDS,
        secrets::COMMANDS,
        server::COMMANDS,
        status::COMMANDS,
        tls::COMMANDS,
        version::COMMANDS,
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
