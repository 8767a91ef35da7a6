//! `tls csr`, `tls sign`, `tls install`: certificates for the cluster port by a CA of one's own.

use std::path::{Path, PathBuf};

use keystead_tls::{ClusterId, PeerName, make, own_ca};

use super::{read, write_new};
use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::time::Timestamp;
use crate::cli::{Invocation, Outcome};
use crate::config::RaftStorageConfig;
use crate::node::uuid_text;
use crate::server::Failure;
use crate::server::enrol::{self, Purpose};

const CONFIG: Flag = Flag::new(
    "config",
    Kind::List,
    "Configuration file, or directory of .hcl and .json files, of the server; may be repeated.",
);
const DATA_DIR: Flag =
    Flag::new("data-dir", Kind::Text, "The data directory, where there is no configuration to name it.");

pub const CSR_FLAGS: &[Flag] = &[
    CONFIG,
    DATA_DIR,
    Flag::new("node-id", Kind::Text, "The server's node_id, with -data-dir."),
    Flag::new("cluster-id", Kind::Text, "The cluster to join, as `status` shows it; a new one by default."),
    Flag::new("out", Kind::Text, "File for the request; node.csr by default."),
];

pub const SIGN_FLAGS: &[Flag] = &[
    Flag::new("ca", Kind::Text, "The authority's certificate; ca.pem by default."),
    Flag::new("ca-key", Kind::Text, "The authority's key; ca-key.pem by default."),
    Flag::new("days", Kind::Int, "Days that the certificate is valid; 825 by default."),
    Flag::new("out", Kind::Text, "File for the certificate; node.pem by default."),
];

pub const INSTALL_FLAGS: &[Flag] = &[
    CONFIG,
    DATA_DIR,
    Flag::new("ca", Kind::Text, "The certificate of the authority that signed; ca.pem by default."),
];

pub fn csr(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let mut storage = storage(invocation)?;
    if let Some(node_id) = invocation.flags.text("node-id") {
        if storage.node_id.as_deref().is_some_and(|configured| configured != node_id) {
            return Err(invocation.fail("-node-id is for -data-dir: the configuration names the node"));
        }
        storage.node_id = Some(node_id.to_owned());
    }
    let cluster_id = match invocation.flags.text("cluster-id").map(str::to_owned) {
        None => None,
        Some(text) => Some(text.replace('-', "").parse::<ClusterId>().map_err(|_| {
            invocation.fail(&format!(
                "invalid value {text:?} for flag -cluster-id: 32 hex digits, as `status` shows"
            ))
        })?),
    };
    let out = out(invocation, "node.csr");
    refuse_existing(invocation, out.as_deref())?;
    let request = enrol::request(&storage, cluster_id)
        .map_err(|Failure(why)| invocation.fail(&format!("Error making the request: {why}")))?;
    write(invocation, out.as_deref(), &request.pem)?;
    let cluster_id = uuid_text(&request.name.cluster_id.0);
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        let mut fields = about(&request.name);
        fields.push(("purpose".to_owned(), request.purpose.as_str().into()));
        fields.push(("public_key_sha256".to_owned(), hex::encode(request.spki_sha256).into()));
        fields.push(("csr".to_owned(), request.pem.into()));
        return Ok(output::print(ui, format, Document::Object(fields)));
    }
    let node = &request.name.node_id;
    let next = match request.purpose {
        Purpose::Found => format!(
            "It is for node {node}, which is to found cluster {cluster_id}.\n\
             Requests of the nodes that are to join it need -cluster-id={cluster_id}"
        ),
        Purpose::Join => format!("It is for node {node}, which is to join cluster {cluster_id}."),
        Purpose::Renew => format!("It is for node {node}, a member of cluster {cluster_id}."),
    };
    ui.output(&format!("Success! Wrote {}\n{next}", shown(out.as_deref())));
    Ok(0)
}

pub fn sign(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let path = |flag: &str, default: &str| PathBuf::from(invocation.flags.text(flag).unwrap_or(default));
    let (ca_path, key_path, request_path) =
        (path("ca", "ca.pem"), path("ca-key", "ca-key.pem"), PathBuf::from(&invocation.args[0]));
    let days = invocation.flags.int("days").unwrap_or(make::CERT_DAYS.into());
    let Ok(days) = u32::try_from(days) else {
        return Err(invocation.fail("-days must be a positive number"));
    };
    let out = out(invocation, "node.pem");
    refuse_existing(invocation, out.as_deref())?;
    let (ca, key, request) =
        (read(invocation, &ca_path)?, read(invocation, &key_path)?, read(invocation, &request_path)?);
    let (name, certificate) = own_ca::sign(&ca, &key, &request, days)
        .map_err(|error| invocation.fail(&format!("Error signing the certificate: {error}")))?;
    write(invocation, out.as_deref(), &certificate)?;
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        let mut fields = about(&name);
        fields.push(("certificate".to_owned(), certificate.into()));
        return Ok(output::print(ui, format, Document::Object(fields)));
    }
    let (node, cluster) = (&name.node_id, uuid_text(&name.cluster_id.0));
    ui.output(&format!(
        "Success! Wrote {}\nIt is for node {node} of cluster {cluster}.",
        shown(out.as_deref())
    ));
    Ok(0)
}

pub fn install(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let storage = storage(invocation)?;
    let (cert_path, ca_path) =
        (invocation.args[0].clone(), invocation.flags.text("ca").unwrap_or("ca.pem").to_owned());
    let (cert, ca) = (read(invocation, cert_path.as_ref())?, read(invocation, ca_path.as_ref())?);
    let installed = enrol::install(&storage.path, (&cert, &cert_path), (&ca, &ca_path))
        .map_err(|Failure(why)| invocation.fail(&format!("Error installing the certificate: {why}")))?;
    let not_after = Timestamp::of_unix(installed.not_after_s).whole_seconds();
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        let mut fields = about(&installed.name);
        fields.push(("purpose".to_owned(), installed.purpose.as_str().into()));
        fields.push(("not_after".to_owned(), not_after.into()));
        return Ok(output::print(ui, format, Document::Object(fields)));
    }
    let (node, cluster) = (&installed.name.node_id, uuid_text(&installed.name.cluster_id.0));
    let next = match installed.purpose {
        Purpose::Found => format!("Start node {node} and initialise it: that founds cluster {cluster}."),
        Purpose::Join => format!("Node {node} joins cluster {cluster} when it is started."),
        Purpose::Renew => format!("Node {node} of cluster {cluster} uses it when it is started again."),
    };
    ui.output(&format!("Success! Installed {cert_path}, valid until {not_after}\n{next}"));
    Ok(0)
}

fn storage(invocation: &mut Invocation<'_, '_>) -> Result<RaftStorageConfig, i32> {
    let paths: Vec<PathBuf> = invocation.flags.list("config").into_iter().map(PathBuf::from).collect();
    let directory = invocation.flags.text("data-dir").map(PathBuf::from);
    let environment = invocation.environment;
    match (paths.is_empty(), directory) {
        (false, None) => enrol::storage_of(&paths, |name| environment.variable(name).map(str::to_owned))
            .map_err(|Failure(why)| invocation.fail(&why)),
        (true, Some(directory)) => Ok(RaftStorageConfig::new(directory)),
        _ => Err(invocation.fail("Either -config or -data-dir must be given.")),
    }
}

/// The file to write: programs that read a document get none unless they ask.
fn out(invocation: &Invocation<'_, '_>, default: &str) -> Option<PathBuf> {
    let named = invocation.flags.text("out").map(PathBuf::from);
    named.or_else(|| (invocation.format == Format::Table).then(|| PathBuf::from(default)))
}

fn shown(out: Option<&Path>) -> String {
    out.map_or_else(String::new, |path| path.display().to_string())
}

fn refuse_existing(invocation: &mut Invocation<'_, '_>, out: Option<&Path>) -> Result<(), i32> {
    match out {
        Some(path) if path.symlink_metadata().is_ok() => Err(invocation
            .fail(&format!("{} is there already; remove it first, or choose another place", path.display()))),
        _ => Ok(()),
    }
}

fn write(invocation: &mut Invocation<'_, '_>, out: Option<&Path>, text: &str) -> Result<(), i32> {
    let Some(path) = out else { return Ok(()) };
    write_new(path, text, 0o644)
        .map_err(|error| invocation.fail(&format!("Error writing {}: {error}", path.display())))
}

/// Whom a request or a certificate is for.
fn about(name: &PeerName) -> Vec<(String, Document)> {
    vec![
        ("node_id".to_owned(), name.node_id.as_str().into()),
        ("incarnation".to_owned(), format!("{:016x}", name.incarnation).into()),
        ("cluster_id".to_owned(), uuid_text(&name.cluster_id.0).into()),
    ]
}
