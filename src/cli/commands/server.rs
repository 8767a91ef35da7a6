//! `server`: its flags only; the server itself is elsewhere.

use std::path::PathBuf;

use crate::cli::flags::{Flag, Kind};
use crate::cli::{Command, Invocation, Outcome};

/// The table's entry.
pub const COMMANDS: &[Command] = &[Command {
    name: "server",
    synopsis: "Runs a node",
    about: "Runs a node, configured by files in HCL or JSON as Vault's:\n\n    \
            $ {program} server -config=/etc/keystead/config.hcl\n\n\
            For trying out, one command gives a cluster of three, initialised and unsealed:\n\n    \
            $ {program} server -dev -dev-nodes=3",
    flags: &[
        Flag::new(
            "config",
            Kind::List,
            "Configuration file, or directory of .hcl and .json files; may be repeated.",
        ),
        Flag::new("log-level", Kind::Text, "trace, debug, info, warn or error (VAULT_LOG_LEVEL)."),
        Flag::new("log-format", Kind::Text, "standard or json (VAULT_LOG_FORMAT)."),
        Flag::new("dev", Kind::Bool, "Run for trying out: temporary data, initialised and unsealed."),
        Flag::new("dev-nodes", Kind::Int, "Number of nodes of a cluster for trying out; 1 by default."),
        Flag::new("dev-tls", Kind::Bool, "Serve TLS with certificates made on the spot."),
        Flag::new("dev-root-token-id", Kind::Text, "The first root token (VAULT_DEV_ROOT_TOKEN_ID)."),
        Flag::new(
            "dev-listen-address",
            Kind::Text,
            "Address to listen on (VAULT_DEV_LISTEN_ADDRESS); 127.0.0.1:8200 by default.",
        ),
        Flag::new("dev-no-store-token", Kind::Bool, "Do not store the root token in ~/.vault-token."),
    ],
    calls_api: false,
    run: Some(run),
    ..Command::DEFAULT
}];

/// What `server` was asked to do.
///
/// The root token of a development server is chosen on the command line, for everybody to see, and so kept
/// like any other text.
#[derive(Clone)]
pub struct ServerArgs {
    /// Configuration files and directories, in the order given.
    pub config: Vec<PathBuf>,
    /// Whether to run for trying out.
    pub dev: bool,
    /// Nodes of a development cluster, at least 1.
    pub dev_nodes: u32,
    /// Whether a single development node serves TLS.
    pub dev_tls: bool,
    /// The development server's root token.
    pub dev_root_token_id: Option<String>,
    /// The (first) development node's API address, `host:port`.
    pub dev_listen_address: Option<String>,
    /// Whether to leave `~/.vault-token` alone.
    pub dev_no_store_token: bool,
    /// The lowest level that is logged; over that of the configuration.
    pub log_level: Option<String>,
    /// The log's format; over that of the configuration.
    pub log_format: Option<String>,
}

/// The most nodes a development cluster has: more processes than one machine runs well, and a mistyped number.
const MOST_DEV_NODES: i64 = 99;

fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let args = parse(invocation)?;
    Ok(crate::server::run(args))
}

fn parse(invocation: &mut Invocation<'_, '_>) -> Result<ServerArgs, i32> {
    invocation.expect_args(0)?;
    let (flags, environment) = (&invocation.flags, invocation.environment);
    let text = |flag: &str, variable: &str| {
        let text = flags.text(flag).or_else(|| environment.setting(variable));
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let dev_nodes = flags.int("dev-nodes").unwrap_or(1);
    let args = ServerArgs {
        config: flags.list("config").into_iter().map(PathBuf::from).collect(),
        // As with Vault, what only makes sense for a development server asks for one.
        dev: flags.bool("dev") || flags.bool("dev-tls"),
        dev_nodes: u32::try_from(dev_nodes).unwrap_or(0),
        dev_tls: flags.bool("dev-tls"),
        dev_root_token_id: text("dev-root-token-id", "DEV_ROOT_TOKEN_ID"),
        dev_listen_address: text("dev-listen-address", "DEV_LISTEN_ADDRESS"),
        dev_no_store_token: flags.bool("dev-no-store-token"),
        log_level: text("log-level", "LOG_LEVEL"),
        log_format: text("log-format", "LOG_FORMAT"),
    };
    if !(1..=MOST_DEV_NODES).contains(&dev_nodes) {
        return Err(
            invocation.fail(&format!("-dev-nodes must be between 1 and {MOST_DEV_NODES}, not {dev_nodes}"))
        );
    }
    if !args.dev && args.config.is_empty() {
        return Err(invocation.fail("Must specify at least one config path using -config"));
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::environment::Environment;
    use crate::cli::ui::Ui;
    use crate::cli::{Program, invocation};

    fn parsed(environment: &Environment, args: &[&str]) -> Result<ServerArgs, String> {
        let args = args.iter().map(|arg| arg.to_string()).collect();
        let mut err = Vec::new();
        let outcome = {
            let mut ui = Ui::new(std::io::empty(), std::io::sink(), &mut err);
            invocation(&COMMANDS[0], Program::Keystead, args, environment, &mut ui)
                .map_err(|()| 1)
                .and_then(|mut invocation| parse(&mut invocation))
        };
        outcome.map_err(|code| {
            assert_eq!(code, 1);
            String::from_utf8(err).unwrap()
        })
    }

    #[test]
    fn flags_and_variables_make_the_arguments() {
        let environment =
            Environment::default().with("VAULT_DEV_ROOT_TOKEN_ID", "r").with("VAULT_LOG_LEVEL", "debug");
        let args =
            parsed(&environment, &["-dev", "-dev-nodes=3", "-log-level=warn", "-config=a", "-config", "b"]);
        let args = args.unwrap();
        assert!(args.dev && !args.dev_tls && !args.dev_no_store_token);
        assert_eq!((args.dev_nodes, args.config), (3, vec![PathBuf::from("a"), PathBuf::from("b")]));
        assert_eq!((args.dev_root_token_id.as_deref(), args.log_level.as_deref()), (Some("r"), Some("warn")));
    }

    #[test]
    fn a_server_needs_a_configuration_or_to_be_for_trying_out() {
        let environment = Environment::default();
        let error = parsed(&environment, &[]).err().unwrap();
        assert_eq!(error, "Must specify at least one config path using -config\n");
        assert!(parsed(&environment, &["-dev", "-dev-nodes=0"]).is_err());
        assert!(parsed(&environment, &["-config=a", "b"]).err().unwrap().starts_with("Too many arguments"));
    }
}
