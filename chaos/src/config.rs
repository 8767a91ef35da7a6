//! A node's configuration, in Vault's own words.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::certs::CertFiles;

/// Everything that goes into one node's file.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The operator's name of the place.
    pub node_id: String,
    /// The data directory.
    pub data: PathBuf,
    /// Where the API is served.
    pub api: SocketAddr,
    /// Where other nodes connect.
    pub cluster: SocketAddr,
    /// What other nodes are told to connect to: [`cluster`](Self::cluster) or something in front of it.
    pub cluster_advertised: SocketAddr,
    /// The API's certificate; without one it is served in the clear.
    pub tls: Option<CertFiles>,
    /// API addresses of the members to ask, and the authority that vouches for them.
    pub retry_join: Vec<(SocketAddr, PathBuf)>,
    /// `log_level`.
    pub log_level: String,
    /// Further lines of the `storage` block.
    pub storage_lines: Vec<String>,
    /// Further lines of the `listener` block.
    pub listener_lines: Vec<String>,
    /// Further lines at the top level.
    pub lines: Vec<String>,
    /// Variables of the process.
    pub environment: Vec<(String, String)>,
}

impl NodeConfig {
    /// Base URL of the API.
    pub fn api_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.api)
    }

    /// The file's text, in HCL.
    pub fn to_hcl(&self) -> String {
        let mut text = String::new();
        let out = &mut text;
        line(out, "storage \"raft\" {");
        line(out, &format!("  path    = {}", quoted(&self.data)));
        line(out, &format!("  node_id = \"{}\"", self.node_id));
        for (address, ca) in &self.retry_join {
            line(out, "  retry_join {");
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            line(out, &format!("    leader_api_addr     = \"{scheme}://{address}\""));
            line(out, &format!("    leader_ca_cert_file = {}", quoted(ca)));
            line(out, "  }");
        }
        for extra in &self.storage_lines {
            line(out, &format!("  {extra}"));
        }
        line(out, "}\n\nlistener \"tcp\" {");
        line(out, &format!("  address         = \"{}\"", self.api));
        line(out, &format!("  cluster_address = \"{}\"", self.cluster));
        match &self.tls {
            Some(files) => {
                line(out, &format!("  tls_cert_file   = {}", quoted(&files.cert)));
                line(out, &format!("  tls_key_file    = {}", quoted(&files.key)));
            }
            None => line(out, "  tls_disable     = true"),
        }
        for extra in &self.listener_lines {
            line(out, &format!("  {extra}"));
        }
        line(out, "}\n");
        line(out, &format!("api_addr      = \"{}\"", self.api_url()));
        line(out, &format!("cluster_addr  = \"https://{}\"", self.cluster_advertised));
        line(out, "disable_mlock = true");
        line(out, &format!("log_level     = \"{}\"", self.log_level));
        for extra in &self.lines {
            line(out, extra);
        }
        text
    }
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("writing into memory does not fail");
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
