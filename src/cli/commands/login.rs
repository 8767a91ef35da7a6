//! `login`, with a token.

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::logical::{print_or_field, trimmed};
use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Format};
use crate::cli::secret::Secret;
use crate::cli::session::Session;
use crate::cli::token_helper::TokenHelper;
use crate::cli::ui::wrap;
use crate::cli::{Command, FIELD, Invocation, Outcome, data};
use crate::client::Token;

/// The table's entry.
pub const COMMANDS: &[Command] = &[Command {
    name: "login",
    synopsis: "Logs in and stores the token",
    arguments: "[options] [TOKEN | token=TOKEN | -]",
    about: "Checks a token and stores it in ~/.vault-token, from where later commands take it. Without an\n\
            argument the token is asked for and typed unseen; - reads it from the standard input.",
    flags: &[
        FIELD,
        Flag::new("method", Kind::Text, "How to log in; token by default."),
        Flag::new("path", Kind::Text, "Where the method is mounted; its name by default."),
        Flag::new("no-store", Kind::Bool, "Do not store the token."),
        Flag::new("no-print", Kind::Bool, "Print nothing."),
        Flag::new("token-only", Kind::Bool, "Print only the token, and do not store it."),
    ],
    takes_data: true,
    run: Some(run),
    ..Command::DEFAULT
}];

/// What is done with the token once it is known to be good.
struct Wishes {
    store: bool,
    print: bool,
    token_only: bool,
}

fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let flags = &invocation.flags;
    let token_only = flags.bool("token-only");
    let wishes =
        Wishes { store: !flags.bool("no-store") && !token_only, print: !flags.bool("no-print"), token_only };
    if flags.bool("no-store") && !wishes.print {
        return Err(invocation.fail("-no-store and -no-print cannot be used together"));
    }
    let method = trimmed(flags.text("method").unwrap_or("token")).to_owned();
    if !matches!(method.as_str(), "" | "token") {
        let text = format!(
            "Unknown auth method: {method}. Use \"{} auth list\" to see the complete list of auth methods. \
             Additionally, some auth methods are only available via the HTTP API.",
            invocation.program.command()
        );
        return Err(invocation.fail(&wrap(&text, 0)));
    }
    let token = given_token(invocation)?;
    let mut session = invocation.session()?;
    // The lookup is only made to check the token: its answer must be readable.
    session.without_wrapping();
    let secret = authenticate(invocation, &mut session, token)?;
    if wishes.store {
        store(invocation, &session)?;
    } else if !wishes.token_only {
        let text = "The token was not stored in token helper. Set the VAULT_TOKEN environment variable or pass the \
                    token below with each request to Vault.";
        invocation.ui.warn(&format!("{}\n", wrap(text, 0)));
    }
    if !wishes.print {
        return Ok(0);
    }
    if wishes.token_only {
        let (ui, format) = invocation.printer();
        return Ok(output::print_field(ui, format, "token", secret.field("token").as_ref()));
    }
    if invocation.format == Format::Table && !invocation.flags.has("field") {
        let text = format!(
            "Success! You are now authenticated. The token information displayed below is already stored in the \
             token helper. You do NOT need to run \"{} login\" again. Future Vault requests will automatically use \
             this token.",
            invocation.program.command()
        );
        invocation.ui.output(&format!("{}\n", wrap(&text, 0)));
    }
    Ok(print_or_field(invocation, secret))
}

/// The token among the arguments, as `token=...`, alone, or `-` for the standard input.
fn given_token(invocation: &mut Invocation<'_, '_>) -> Result<Option<Zeroizing<String>>, i32> {
    let mut args = std::mem::take(&mut invocation.args);
    if let [only] = args.as_mut_slice() {
        if only == "-" {
            *only = "token=-".to_owned();
        } else if !only.contains('=') && !only.starts_with('@') {
            *only = format!("token={only}");
        }
    }
    let pairs = data::parse_texts(&args, invocation.ui);
    // The arguments' own memory in the process is the kernel's; this copy of it is ours to wipe.
    args.into_iter().for_each(|arg| drop(Zeroizing::new(arg)));
    let pairs = pairs.map_err(|why| invocation.fail(&format!("Error parsing configuration: {why}")))?;
    Ok(pairs.into_iter().find(|(key, _)| key == "token").map(|(_, token)| token))
}

fn authenticate(
    invocation: &mut Invocation<'_, '_>,
    session: &mut Session,
    token: Option<Zeroizing<String>>,
) -> Result<Secret, i32> {
    let token = match token {
        Some(token) => token,
        None => ask(invocation)?,
    };
    let token = token.trim();
    if token.is_empty() {
        let text =
            "Error authenticating: a token must be passed to auth, please view the help for more information";
        invocation.ui.error(text);
        return Err(2);
    }
    session.replace_token(Token::new(token));
    let answer = session.read("auth/token/lookup-self", &[]);
    let answer =
        answer.map_err(|error| invocation.refused("Error authenticating: error looking up token", &error))?;
    match answer.and_then(|secret| secret.data) {
        Some(data) => Ok(Secret::of_auth(auth_of_lookup(data))),
        None => {
            invocation.ui.error("Error authenticating: empty response from lookup-self");
            Err(2)
        }
    }
}

fn ask(invocation: &mut Invocation<'_, '_>) -> Result<Zeroizing<String>, i32> {
    let answer = if invocation.flags.bool("non-interactive") {
        Err(std::io::Error::other("refusing to ask with -non-interactive set"))
    } else {
        invocation.ui.ask_hidden("Token (will be hidden): ", false)
    };
    answer.map_err(|error| {
        let text = "Error authenticating: An error occurred attempting to ask for a token. The raw error message is \
                    shown below, but usually this is because you attempted to pipe a value into the command or you \
                    are executing outside of a terminal (tty). If you want to pipe the value, pass \"-\" as the \
                    argument to read from stdin. The raw error was:";
        invocation.ui.error(&format!("{} {error}", wrap(text, 0)));
        2
    })
}

/// What a login would have answered, from what a lookup says.
fn auth_of_lookup(data: Map<String, Value>) -> Map<String, Value> {
    let value = |key: &str| data.get(key).cloned();
    let policies = value("policies").unwrap_or(Value::Null);
    Map::from_iter([
        ("client_token".to_owned(), value("id").unwrap_or_default()),
        ("accessor".to_owned(), value("accessor").unwrap_or_default()),
        ("policies".to_owned(), policies.clone()),
        ("token_policies".to_owned(), policies),
        ("identity_policies".to_owned(), value("identity_policies").unwrap_or_default()),
        ("metadata".to_owned(), value("meta").unwrap_or_default()),
        ("lease_duration".to_owned(), value("ttl").unwrap_or(json!(0))),
        ("renewable".to_owned(), value("renewable").unwrap_or(json!(false))),
    ])
}

fn store(invocation: &mut Invocation<'_, '_>, session: &Session) -> Result<(), i32> {
    let helper = TokenHelper::of(invocation.environment);
    let stored = match (&helper, session.token()) {
        (Some(helper), Some(token)) => {
            helper.store(token).map_err(|error| format!("{}: {error}", helper.path().display()))
        }
        _ => Err("HOME is not set, so there is no place for ~/.vault-token".to_owned()),
    };
    if let Err(why) = stored {
        let text = format!(
            "Error storing token: {why}\nAuthentication was successful, but the token was not persisted."
        );
        invocation.ui.error(&text);
        return Err(2);
    }
    let overriding = invocation.environment.non_empty("TOKEN").is_some();
    if overriding && invocation.format == Format::Table && !invocation.flags.has("field") {
        let name = invocation.environment.name_of("TOKEN");
        let text = format!(
            "WARNING! The {name} environment variable is set! The value of this variable will take precedence; if \
             this is unwanted please unset {name} or update its value accordingly."
        );
        invocation.ui.warn(&format!("{}\n", wrap(&text, 0)));
    }
    Ok(())
}
