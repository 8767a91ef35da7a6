//! A certificate authority for the API ports of one cluster.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use keystead_tls::{ClientTls, make};
use rustls::ClientConfig;

use crate::{Error, Result};

/// How long the certificates of a test are valid, in days.
const DAYS: u32 = 7;

/// An authority and the files it wrote.
pub struct Pki {
    directory: PathBuf,
    ca_pem: String,
    ca_key: String,
    client: Arc<ClientConfig>,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct CertFiles {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

impl Pki {
    /// Makes an authority and writes its certificate to `directory`.
    ///
    /// # Errors
    /// [`Error::Tls`] and [`Error::Io`].
    pub fn new(directory: &Path) -> Result<Self> {
        let (ca_pem, ca_key) = make::make_ca("Keystead test CA")?;
        std::fs::create_dir_all(directory).map_err(Error::io("directory for certificates"))?;
        let file = directory.join("ca.pem");
        std::fs::write(&file, &ca_pem).map_err(Error::io("ca.pem"))?;
        let client = ClientTls { ca_file: Some(file), ..ClientTls::default() }.build()?;
        Ok(Self { directory: directory.into(), ca_pem, ca_key: ca_key.to_string(), client })
    }

    /// The file with the authority's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Makes a certificate for `localhost` and 127.0.0.1.
    ///
    /// # Errors
    /// [`Error::Tls`] and [`Error::Io`].
    pub fn issue(&self, name: &str) -> Result<CertFiles> {
        let dns = ["localhost".to_owned()];
        let ips = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let (cert, key) = make::make_cert(&self.ca_pem, &self.ca_key, &dns, &ips, DAYS)?;
        let files = CertFiles {
            cert: self.directory.join(format!("{name}.pem")),
            key: self.directory.join(format!("{name}-key.pem")),
        };
        std::fs::write(&files.cert, cert).map_err(Error::io("certificate"))?;
        std::fs::write(&files.key, key.as_bytes()).map_err(Error::io("key"))?;
        Ok(files)
    }

    /// What a client needs to trust the servers.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }
}
