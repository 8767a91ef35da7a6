//! Command-line flags by the rules of Go's `flag` package, which is what scripts written for Vault expect.
//!
//! `-x v`, `-x=v` and the same with two dashes; a boolean takes its value only after `=`; parsing stops at
//! the first argument that is no flag, and at `--`. General-purpose parsers for Rust take `-format` for a
//! bundle of one-letter flags and word their errors differently, so this one is our own.

use std::collections::HashMap;
use std::time::Duration;

use super::duration;

/// What a flag's value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `-x`, `-x=true`, `-x=false`.
    Bool,
    /// Any text.
    Text,
    /// A whole number, in decimal or with Go's 0x, 0o and 0b prefixes.
    Int,
    /// A Go duration or bare seconds.
    Duration,
    /// Text that may be given more than once; every occurrence counts.
    List,
    /// Text with commas, given once or more often; every part counts.
    CommaList,
    /// `key=value`, repeatable.
    Map,
}

/// One flag of a command.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// The name without its dash.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// The line under it in the command's help.
    pub usage: &'static str,
}

impl Flag {
    /// A flag; in a `const` table this reads like the help it makes.
    pub const fn new(name: &'static str, kind: Kind, usage: &'static str) -> Flag {
        Flag { name, kind, usage }
    }
}

/// The flags that were given, and what followed them.
#[derive(Default)]
pub struct Parsed {
    values: HashMap<&'static str, Vec<Value>>,
    /// The positional arguments.
    pub rest: Vec<String>,
}

enum Value {
    Bool(bool),
    Text(String),
    Int(i64),
    Duration(duration::GoDuration),
    Pair(String, String),
}

impl Parsed {
    /// Parses arguments up to the first that is no flag.
    ///
    /// # Errors
    /// The text that Go's parser, with Vault's value types, gives.
    pub fn parse(flags: &[Flag], args: &[String]) -> Result<Parsed, String> {
        let mut parsed = Parsed::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let Some((name, inline)) = split_flag(arg)? else {
                if arg != "--" {
                    parsed.rest.push(arg.clone());
                }
                parsed.rest.extend(args.cloned());
                break;
            };
            let Some(flag) = flags.iter().find(|flag| flag.name == name) else {
                return Err(format!("flag provided but not defined: -{name}"));
            };
            let text = match (flag.kind, inline) {
                (_, Some(text)) => text,
                (Kind::Bool, None) => "true".to_owned(),
                (_, None) => {
                    args.next().cloned().ok_or_else(|| format!("flag needs an argument: -{name}"))?
                }
            };
            let values = parsed.values.entry(flag.name).or_default();
            match parse_value(flag.kind, &text) {
                Ok(new) => match flag.kind {
                    Kind::List | Kind::CommaList | Kind::Map => values.extend(new),
                    _ => *values = new,
                },
                Err(why) if flag.kind == Kind::Bool => {
                    return Err(format!("invalid boolean value {text:?} for -{name}: {why}"));
                }
                Err(why) => return Err(format!("invalid value {text:?} for flag -{name}: {why}")),
            }
        }
        Ok(parsed)
    }

    /// Whether the flag was given at all.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A boolean flag; false where it was not given.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.last(name), Some(Value::Bool(true)))
    }

    /// A text flag.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.last(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A number.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.last(name) {
            Some(Value::Int(number)) => Some(*number),
            _ => None,
        }
    }

    /// A duration that may be negative, as Go writes it.
    pub fn go_duration(&self, name: &str) -> Option<duration::GoDuration> {
        match self.last(name) {
            Some(Value::Duration(duration)) => Some(*duration),
            _ => None,
        }
    }

    /// A duration for our own use; a negative one counts as none.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.go_duration(name).and_then(|duration| u64::try_from(duration.0).ok()).map(Duration::from_nanos)
    }

    /// All values of a repeatable flag, in the order given.
    pub fn list(&self, name: &str) -> Vec<&str> {
        let texts = self.values.get(name).into_iter().flatten();
        texts
            .filter_map(|value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
            .collect()
    }

    /// All pairs of a `key=value` flag, in the order given.
    pub fn pairs(&self, name: &str) -> Vec<(&str, &str)> {
        fn pair(value: &Value) -> Option<(&str, &str)> {
            if let Value::Pair(key, value) = value { Some((key, value)) } else { None }
        }
        self.values.get(name).into_iter().flatten().filter_map(pair).collect()
    }

    fn last(&self, name: &str) -> Option<&Value> {
        self.values.get(name).and_then(|values| values.last())
    }
}

/// The name and inline value of a flag; `None` for what ends the flags.
fn split_flag(arg: &str) -> Result<Option<(&str, Option<String>)>, String> {
    let Some(body) = arg.strip_prefix('-').filter(|body| !body.is_empty()) else { return Ok(None) };
    let body = match body.strip_prefix('-') {
        Some("") => return Ok(None),
        Some(body) => body,
        None => body,
    };
    if body.starts_with(['-', '=']) {
        return Err(format!("bad flag syntax: {arg}"));
    }
    Ok(Some(match body.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (body, None),
    }))
}

fn parse_value(kind: Kind, text: &str) -> Result<Vec<Value>, String> {
    let one = |value| Ok(vec![value]);
    match kind {
        Kind::Bool => one(Value::Bool(parse_bool(text)?)),
        Kind::Text | Kind::List => one(Value::Text(text.to_owned())),
        Kind::CommaList => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Ok(parts.map(|part| Value::Text(part.to_owned())).collect())
        }
        Kind::Int => one(Value::Int(parse_int(text)?)),
        Kind::Duration => one(Value::Duration(duration::GoDuration::parse_flag(text)?)),
        Kind::Map => match text.split_once('=') {
            Some((key, value)) => one(Value::Pair(key.to_owned(), value.to_owned())),
            None => Err(format!("missing = in KV pair: {text:?}")),
        },
    }
}

/// The texts that Go's `strconv.ParseBool` takes.
///
/// # Errors
/// Go's text for anything else.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

fn parse_int(text: &str) -> Result<i64, String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        _ => (10, digits),
    };
    let refused = |why| format!("strconv.ParseInt: parsing {text:?}: {why}");
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(refused("invalid syntax"));
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).map_err(|_| refused("value out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::new("field", Kind::Text, ""),
        Flag::new("force", Kind::Bool, ""),
        Flag::new("version", Kind::Int, ""),
        Flag::new("ttl", Kind::Duration, ""),
        Flag::new("policy", Kind::List, ""),
        Flag::new("versions", Kind::CommaList, ""),
        Flag::new("header", Kind::Map, ""),
    ];

    fn parse(args: &[&str]) -> Result<Parsed, String> {
        Parsed::parse(FLAGS, &args.iter().map(|arg| arg.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn every_spelling_of_a_flag_is_taken() {
        for args in [["-field", "x"].as_slice(), &["-field=x"], &["--field", "x"], &["--field=x"]] {
            assert_eq!(parse(args).unwrap().text("field"), Some("x"), "{args:?}");
        }
        assert_eq!(parse(&["-field="]).unwrap().text("field"), Some(""));
        assert_eq!(parse(&["-field", "-force"]).unwrap().text("field"), Some("-force"));
        assert_eq!(parse(&["-field=a=b"]).unwrap().text("field"), Some("a=b"));
    }

    #[test]
    fn parsing_stops_at_the_first_positional_argument() {
        let parsed = parse(&["-force", "secret/a", "-field=x"]).unwrap();
        assert!(parsed.bool("force") && !parsed.has("field"));
        assert_eq!(parsed.rest, ["secret/a", "-field=x"]);
        assert_eq!(parse(&["--", "-force"]).unwrap().rest, ["-force"]);
        assert_eq!(parse(&["-", "-force"]).unwrap().rest, ["-", "-force"]);
    }

    #[test]
    fn a_boolean_takes_no_second_argument() {
        let parsed = parse(&["-force", "false"]).unwrap();
        assert!(parsed.bool("force"));
        assert_eq!(parsed.rest, ["false"]);
        assert!(!parse(&["-force=false"]).unwrap().bool("force"));
    }

    #[test]
    fn values_are_converted() {
        let parsed = parse(&["-version=0x10", "-ttl=90", "-policy=a", "-policy=b,c"]).unwrap();
        assert_eq!(
            (parsed.int("version"), parsed.duration("ttl")),
            (Some(16), Some(Duration::from_secs(90)))
        );
        assert_eq!(parsed.list("policy"), ["a", "b,c"]);
        assert_eq!(parse(&["-versions=1, 2", "-versions", "3"]).unwrap().list("versions"), ["1", "2", "3"]);
        assert_eq!(parse(&["-header=a=b=c"]).unwrap().pairs("header"), [("a", "b=c")]);
        assert_eq!(parse(&["-version=1", "-version=2"]).unwrap().int("version"), Some(2));
    }

    #[test]
    fn errors_read_as_in_go() {
        let error = |args| parse(args).err().unwrap();
        assert_eq!(error(&["-badflag"]), "flag provided but not defined: -badflag");
        assert_eq!(error(&["--badflag=1"]), "flag provided but not defined: -badflag");
        assert_eq!(error(&["-field"]), "flag needs an argument: -field");
        assert_eq!(error(&["---field"]), "bad flag syntax: ---field");
        assert_eq!(error(&["-=x"]), "bad flag syntax: -=x");
        assert_eq!(
            error(&["-version=abc"]),
            "invalid value \"abc\" for flag -version: strconv.ParseInt: parsing \"abc\": invalid syntax"
        );
        assert_eq!(
            error(&["-version=99999999999999999999"]),
            "invalid value \"99999999999999999999\" for flag -version: \
             strconv.ParseInt: parsing \"99999999999999999999\": value out of range"
        );
        assert!(error(&["-force=maybe"]).starts_with("invalid boolean value \"maybe\" for -force: "));
        assert_eq!(
            error(&["-ttl=abc"]),
            "invalid value \"abc\" for flag -ttl: time: invalid duration \"abc\""
        );
    }
}
