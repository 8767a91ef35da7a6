//! `tls`: certificates for the API port, for those who have no PKI; for the cluster port, for those who have one; and
//! a look into those of others.

mod enrol;
mod inspect;

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keystead_tls::make;
use zeroize::Zeroizing;

use crate::cli::flags::{Flag, Kind};
use crate::cli::{Command, Invocation, Outcome};

/// The table's entries.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "tls",
        synopsis: "Makes and shows certificates",
        about: "Makes certificates for the API port, for those who have no PKI, and shows what certificates say.\n\n\
                The cluster port needs none: a cluster has a CA of its own. With \"tls csr\" and \"tls install\" a CA of\n\
                yours takes its place.",
        calls_api: false,
        ..Command::DEFAULT
    },
    Command {
        name: "tls ca",
        synopsis: "Makes a certificate authority",
        about: "Makes a certificate authority: ca.pem, which clients and nodes are given, and ca-key.pem, which\n\
                belongs on no node. Nothing is overwritten.",
        flags: &[
            Flag::new("out-dir", Kind::Text, "Directory for the two files; the current one by default."),
            Flag::new("common-name", Kind::Text, "Its name; \"Keystead CA\" by default."),
        ],
        calls_api: false,
        run: Some(ca),
        ..Command::DEFAULT
    },
    Command {
        name: "tls cert",
        synopsis: "Makes a node's certificate",
        about: "Makes a certificate for the API port of a node, signed by an authority:\n\n    \
                $ {program} tls cert -ca=ca.pem -ca-key=ca-key.pem -dns=node1.example -ip=10.0.0.1 \\\n    \
                    -out=node1.pem -key-out=node1-key.pem\n\nNothing is overwritten.",
        flags: &[
            Flag::new("ca", Kind::Text, "The authority's certificate; ca.pem by default."),
            Flag::new("ca-key", Kind::Text, "The authority's key; ca-key.pem by default."),
            Flag::new("dns", Kind::CommaList, "Host name of the node; may be given more than once."),
            Flag::new("ip", Kind::CommaList, "IP address of the node; may be given more than once."),
            Flag::new("out", Kind::Text, "File for the certificate; cert.pem by default."),
            Flag::new("key-out", Kind::Text, "File for its key; cert-key.pem by default."),
            Flag::new("days", Kind::Int, "Days that it is valid; 825 by default."),
        ],
        calls_api: false,
        run: Some(cert),
        ..Command::DEFAULT
    },
    Command {
        name: "tls csr",
        synopsis: "Requests a node's certificate for the cluster port",
        about: "Makes a certificate request for the cluster port of a node, to be signed by a CA of your own in place of\n\
                the cluster's built-in one. The key is made once, in the data directory, and never leaves it.\n\n    \
                $ {program} tls csr -config=node1.hcl -out=node1.csr\n    \
                $ {program} tls sign -ca=ca.pem -ca-key=ca-key.pem -out=node1.pem node1.csr\n    \
                $ {program} tls install -config=node1.hcl -ca=ca.pem node1.pem\n\n\
                The first node's request draws the cluster's id; those of the others are made with -cluster-id. All\n\
                nodes of a cluster have certificates by the same CA, from init on. On a member this makes the request\n\
                for a new certificate to its old key. Run it as the user that the server runs as.",
        flags: enrol::CSR_FLAGS,
        calls_api: false,
        prints_formats: true,
        run: Some(enrol::csr),
        ..Command::DEFAULT
    },
    Command {
        name: "tls sign",
        synopsis: "Signs a node's certificate for the cluster port",
        arguments: "[options] CSR",
        about: "Signs a request of \"tls csr\", on the machine that has the authority's key. Any other CA will do that\n\
                copies from the request the URI among the subject alternative names (keystead://...), the key usage\n\
                digitalSignature and the extended key usages serverAuth and clientAuth, and that signs nodes itself,\n\
                not through another CA. Nothing is overwritten.",
        flags: enrol::SIGN_FLAGS,
        calls_api: false,
        prints_formats: true,
        run: Some(enrol::sign),
        ..Command::DEFAULT
    },
    Command {
        name: "tls install",
        synopsis: "Installs a node's certificate for the cluster port",
        arguments: "[options] CERT",
        about: "Checks that a certificate fits this node's request and key, and that the CA signed it, and installs\n\
                both: the node uses this certificate and trusts this CA on the cluster port. The server must not be\n\
                running. Once a certificate runs out there are warnings; the cluster goes on.",
        flags: enrol::INSTALL_FLAGS,
        calls_api: false,
        prints_formats: true,
        run: Some(enrol::install),
        ..Command::DEFAULT
    },
    Command {
        name: "tls inspect",
        synopsis: "Shows what certificates say",
        arguments: "[options] FILE",
        about: "Shows what the certificates in a PEM file say: for whom, by whom, until when, with which key. The\n\
                exit code is 1 if one of them is not valid now.",
        calls_api: false,
        prints_formats: true,
        run: Some(inspect::run),
        ..Command::DEFAULT
    },
];

fn ca(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let directory = PathBuf::from(invocation.flags.text("out-dir").unwrap_or_default());
    let name = invocation.flags.text("common-name").unwrap_or("Keystead CA");
    let (cert, key) =
        make::make_ca(name).map_err(|error| invocation.fail(&format!("Error making the CA: {error}")))?;
    fs::create_dir_all(&directory)
        .map_err(|error| invocation.fail(&format!("Error creating {}: {error}", directory.display())))?;
    write_pair(invocation, &directory.join("ca.pem"), &cert, &directory.join("ca-key.pem"), &key)
}

fn cert(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let path = |flag: &str, default: &str| PathBuf::from(invocation.flags.text(flag).unwrap_or(default));
    let (ca_path, ca_key_path) = (path("ca", "ca.pem"), path("ca-key", "ca-key.pem"));
    let (out, key_out) = (path("out", "cert.pem"), path("key-out", "cert-key.pem"));
    let dns: Vec<String> = invocation.flags.list("dns").into_iter().map(str::to_owned).collect();
    let ips: Result<Vec<IpAddr>, String> = invocation
        .flags
        .list("ip")
        .into_iter()
        .map(|ip| ip.parse().map_err(|_| format!("invalid value {ip:?} for flag -ip: not an IP address")))
        .collect();
    let ips = ips.map_err(|why| invocation.fail(&why))?;
    if dns.is_empty() && ips.is_empty() {
        return Err(invocation.fail("Must give at least one name or address of the node with -dns or -ip"));
    }
    let days = invocation.flags.int("days").unwrap_or(825);
    let Ok(days) = u32::try_from(days) else {
        return Err(invocation.fail("-days must be a positive number"));
    };
    let ca_pem = read(invocation, &ca_path)?;
    let ca_key = read(invocation, &ca_key_path)?;
    let (cert, key) = make::make_cert(&ca_pem, &ca_key, &dns, &ips, days)
        .map_err(|error| invocation.fail(&format!("Error making the certificate: {error}")))?;
    write_pair(invocation, &out, &cert, &key_out, &key)
}

fn read(invocation: &mut Invocation<'_, '_>, path: &Path) -> Result<Zeroizing<String>, i32> {
    let text = fs::read_to_string(path).map(Zeroizing::new);
    text.map_err(|error| invocation.fail(&format!("Error reading {}: {error}", path.display())))
}

/// Writes the key, for its owner only, then the certificate; neither over something that is there.
fn write_pair(
    invocation: &mut Invocation<'_, '_>,
    cert_path: &Path,
    cert: &str,
    key_path: &Path,
    key: &str,
) -> Outcome {
    for path in [cert_path, key_path] {
        if path.symlink_metadata().is_ok() {
            let text =
                format!("{} is there already; remove it first, or choose another place", path.display());
            return Err(invocation.fail(&text));
        }
    }
    for (path, text, mode) in [(key_path, key, 0o600), (cert_path, cert, 0o644)] {
        write_new(path, text, mode)
            .map_err(|error| invocation.fail(&format!("Error writing {}: {error}", path.display())))?;
    }
    let text = format!("Success! Wrote {} and {}", cert_path.display(), key_path.display());
    invocation.ui.output(&text);
    Ok(0)
}

fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
