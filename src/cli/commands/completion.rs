//! `completion`: scripts that let a shell complete commands and flags, made from the table of commands.

use std::collections::BTreeMap;

use crate::cli::{Command, Invocation, Outcome};

use super::all;

/// The table's entry.
pub const COMMANDS: &[Command] = &[Command {
    name: "completion",
    synopsis: "Prints a script for the shell's completion",
    arguments: "bash | zsh | fish",
    about: "Prints a script that lets a shell complete commands and flags:\n\n    \
            $ {program} completion bash > /etc/bash_completion.d/{program}\n    \
            $ {program} completion zsh > \"${fpath[1]}/_{program}\"\n    \
            $ {program} completion fish > ~/.config/fish/completions/{program}.fish",
    calls_api: false,
    run: Some(run),
    ..Command::DEFAULT
}];

/// What the flags `-autocomplete-install` and `-autocomplete-uninstall` of Vault's command line get: nothing
/// here changes a user's files behind his back.
pub fn install_hint(program: &str) -> String {
    format!(
        "Nothing was changed. Put the script where your shell finds it, or remove it from there:\n\n    \
         {program} completion bash > /etc/bash_completion.d/{program}\n    \
         {program} completion zsh > \"${{fpath[1]}}/_{program}\"\n    \
         {program} completion fish > ~/.config/fish/completions/{program}.fish"
    )
}

fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let program = invocation.program.command();
    let script = match invocation.args[0].as_str() {
        "bash" => bash(program),
        "zsh" => zsh(program),
        "fish" => fish(program),
        other => {
            let text = format!("There is no completion for {other:?}; it must be bash, zsh or fish");
            return Err(invocation.fail(&text));
        }
    };
    invocation.ui.output(script.trim_end());
    Ok(0)
}

/// What may follow each command: its subcommands, with their synopses, and its flags.
struct Words {
    subcommands: Vec<(&'static str, &'static str)>,
    flags: Vec<(&'static str, &'static str)>,
}

/// By the command's name; the empty name stands for the program.
fn words() -> BTreeMap<&'static str, Words> {
    let mut words = BTreeMap::from([("", Words { subcommands: Vec::new(), flags: Vec::new() })]);
    for command in all() {
        let flags = command.all_flags();
        let flags =
            flags.iter().filter(|_| command.run.is_some()).map(|flag| (flag.name, flag.usage)).collect();
        words.insert(command.name, Words { subcommands: Vec::new(), flags });
        let (parent, name) = command.name.rsplit_once(' ').unwrap_or(("", command.name));
        if let Some(parent) = words.get_mut(parent) {
            parent.subcommands.push((name, command.synopsis));
        }
    }
    words
}

/// `case` branches, one for each command, that set `words` to what may follow it.
fn branches() -> String {
    let branch = |(command, words): (&str, Words)| {
        let subcommands = words.subcommands.iter().map(|(name, _)| (*name).to_owned());
        let flags = words.flags.iter().map(|(name, _)| format!("-{name}"));
        let all: Vec<String> = subcommands.chain(flags).collect();
        format!("        '{command}') words='{}' ;;\n", all.join(" "))
    };
    words().into_iter().map(branch).collect()
}

/// A pattern of all commands' names.
fn names() -> String {
    all().map(|command| format!("'{}'", command.name)).collect::<Vec<_>>().join("|")
}

fn bash(program: &str) -> String {
    format!(
        r#"# Completion of {program} for bash.
_{program}() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" command='' words='' word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "${{command:+$command }}$word" in
            {names}) command="${{command:+$command }}$word" ;;
            *) break ;;
        esac
    done
    case "$command" in
{branches}    esac
    # Without dashes in front there is nothing but subcommands to complete; files are left to the shell.
    if [[ $current != -* ]]; then
        words="$(printf '%s\n' $words | grep -v '^-')"
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _{program} {program}
"#,
        names = names(),
        branches = branches(),
    )
}

fn zsh(program: &str) -> String {
    format!(
        r#"#compdef {program}
# Completion of {program} for zsh.
_{program}() {{
    local command='' words_of='' word
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "${{command:+$command }}$word" in
            ({names}) command="${{command:+$command }}$word" ;;
            (*) break ;;
        esac
    done
    local -a candidates
    case "$command" in
{branches}    esac
    candidates=(${{=words_of}})
    if [[ $PREFIX != -* ]]; then
        candidates=(${{candidates:#-*}})
    fi
    (( $#candidates )) && compadd -- $candidates || _files
}}
if [[ $funcstack[1] == _{program} ]]; then
    _{program} "$@"
else
    compdef _{program} {program}
fi
"#,
        names = names(),
        branches = branches().replace(") words=", ") words_of=").replace("        '", "        ('"),
    )
}

fn fish(program: &str) -> String {
    let mut script = format!(
        r#"# Completion of {program} for fish.
function __{program}_command
    set -l command ''
    for word in (commandline -opc)[2..-1]
        set -l longer (string trim "$command $word")
        contains -- "$longer" {names}; or break
        set command "$longer"
    end
    echo "$command"
end
"#,
        names = names().replace('|', " "),
    );
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    for (command, words) in words() {
        let condition = format!("complete -c {program} -n 'test (__{program}_command) = \"{command}\"'");
        for (name, synopsis) in &words.subcommands {
            script.push_str(&format!("{condition} -f -a {name} -d '{}'\n", quoted(synopsis)));
        }
        for (name, usage) in &words.flags {
            script.push_str(&format!("{condition} -o {name} -d '{}'\n", quoted(usage)));
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use super::*;

    /// Asks bash itself what it would offer; `None` where there is no bash.
    fn offered(line: &[&str]) -> Option<Vec<String>> {
        let script = format!(
            "{}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_keystead\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
            bash("keystead"),
            line.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
            line.len() - 1
        );
        let output = Process::new("bash").args(["--norc", "-c", &script]).output().ok()?;
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        Some(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
    }

    #[test]
    fn bash_offers_subcommands_and_flags() {
        let Some(first) = offered(&["keystead", ""]) else { return };
        assert!(first.contains(&"kv".to_owned()) && first.contains(&"operator".to_owned()), "{first:?}");
        assert_eq!(offered(&["keystead", "kv", "metadata", "g"]).unwrap(), ["get"]);
        assert_eq!(offered(&["keystead", "kv", "get", "-ver"]).unwrap(), ["-version"]);
        assert_eq!(offered(&["keystead", "kv", "get", "-mount=x", "-ver"]).unwrap(), ["-version"]);
        assert_eq!(offered(&["keystead", "nosuch", "x", "kv"]).unwrap(), ["kv"]);
    }

    #[test]
    fn every_script_knows_every_command() {
        for script in [bash("vault"), zsh("vault"), fish("vault")] {
            assert!(script.contains("vault") && !script.contains("keystead"));
            for command in all() {
                assert!(script.contains(command.name), "{}", command.name);
            }
        }
        assert!(fish("vault").contains("-n 'test (__vault_command) = \"kv metadata\"' -f -a put -d"));
    }
}
