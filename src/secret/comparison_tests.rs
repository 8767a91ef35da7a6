//! What must not be compared with operators, what must not branch, and what must not be printed.

use std::path::{Path, PathBuf};

use super::{
    BarrierKey, DerivedKey, Kek, LastingKey, LogKey, PathKey, RootKey, SecretBytes, SecretString, ShareBytes,
};

/// Does not compile once one of the types can be compared with `==`: which of the two functions is meant would then
/// be ambiguous.
macro_rules! without_partial_eq {
    ($($type:ty),+ $(,)?) => {$(
        const _: fn() = || {
            trait Comparable<Unless> {
                fn is() {}
            }
            struct Ambiguous;
            impl<T: ?Sized> Comparable<()> for T {}
            impl<T: ?Sized + PartialEq> Comparable<Ambiguous> for T {}
            let _ = <$type as Comparable<_>>::is;
        };
    )+};
}

/// The same for `{:?}`, by which a secret gets into a log without anybody's wish.
macro_rules! without_debug {
    ($($type:ty),+ $(,)?) => {$(
        const _: fn() = || {
            trait Printable<Unless> {
                fn is() {}
            }
            struct Ambiguous;
            impl<T: ?Sized> Printable<()> for T {}
            impl<T: ?Sized + std::fmt::Debug> Printable<Ambiguous> for T {}
            let _ = <$type as Printable<_>>::is;
        };
    )+};
}

without_partial_eq!(SecretString, RootKey, Kek, BarrierKey, PathKey, LogKey, ShareBytes, DerivedKey<u8>);
without_partial_eq!(crate::barrier::Mac, crate::barrier::LogTag, crate::barrier::Keyring);
without_partial_eq!(crate::seal::Share, crate::seal::SharePoint);
without_debug!(SecretString, SecretBytes, RootKey, Kek, BarrierKey, PathKey, LogKey, ShareBytes, LastingKey);
without_debug!(DerivedKey<u8>);
without_debug!(crate::seal::Share, crate::seal::SharePoint, crate::seal::InitOutput, crate::seal::NewRoot);

/// Words in the names of what has to be compared in constant time.
const SECRET: [&str; 8] = ["mac", "tag", "token", "proof", "challenge", "hmac", "secret", "expose()"];
/// Operands that are named so and are public.
const PUBLIC: [&str; 4] = [
    "tag.term",
    "origin.vault_tag",
    // On the command line, where the caller compares two of his own tokens.
    "own.expose()",
    "vault_tag(self.vault_id)",
];

/// The program's own lines below a directory of this package, without its tests.
fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(below)];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|kind| kind == "rs")
            && !path.to_string_lossy().contains("test")
        {
            let text = std::fs::read_to_string(&path).unwrap();
            let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            found.push((path, own));
        }
    }
    assert!(!found.is_empty(), "there is something below {below}");
    found
}

/// The operands of the comparisons in a line that are named like secrets.
fn secret_operands(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for operator in [" == ", " != "] {
        for (at, _) in line.match_indices(operator) {
            let left = line[..at].rsplit([' ', '!', '&', '*']).next().unwrap_or_default();
            let right = operand(&line[at + operator.len()..]);
            let secret = |operand: &&str| {
                let words: Vec<&str> = operand.split(['.', '_', '(', '&', '*']).collect();
                !PUBLIC.contains(operand)
                    && SECRET.iter().any(|secret| words.contains(secret) || operand.ends_with(secret))
            };
            found.extend([left.trim_start_matches('('), right].into_iter().filter(secret));
        }
    }
    found
}

/// What stands at the front of some text, up to the end of the bracket around it.
fn operand(text: &str) -> &str {
    let mut depth = 0;
    let end = text.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth < 0 || [' ', ';', ','].contains(&c)
    });
    &text[..end.unwrap_or(text.len())]
}

#[test]
fn case_17_no_token_mac_or_challenge_is_compared_with_an_operator() {
    assert_eq!(secret_operands("if answer.mac == expected {"), ["answer.mac"]);
    assert_eq!(
        secret_operands("root.expose() == x && given_token != self.0"),
        ["root.expose()", "given_token"]
    );
    assert!(secret_operands("if machine == stage && tag.term == key_term").is_empty());
    for (path, text) in ["src", "raft/src", "tls/src"].into_iter().flat_map(sources) {
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let found = secret_operands(line);
            assert!(found.is_empty(), "{}:{}: {found:?}: compare with ct_eq", path.display(), n + 1);
        }
    }
}

/// Speed that depends on an operand comes from a branch or from a table. Neither can be written without one of
/// these; loops run over constant ranges.
#[test]
fn case_17_the_arithmetic_of_shares_has_no_branch_and_no_index() {
    let (_, text) = sources("src/seal").into_iter().find(|(path, _)| path.ends_with("gf256.rs")).unwrap();
    let code =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for token in
        ["if ", "match ", "while ", "loop ", "return", "?", "[", "then", "filter", "==", "!=", "<=", "%"]
    {
        assert!(!code.contains(token), "`{token}` in gf256.rs");
    }
    // A mask that the compiler sees through is a branch again.
    assert_eq!(code.matches("black_box((bit & 1).wrapping_neg())").count(), 1);
    assert_eq!(code.matches("& mask(").count(), 2);
    for part in ["(0..8)", "(1..8)"] {
        assert_eq!(code.matches(part).count(), 1, "{part}");
    }
}
