//! The listeners' certificates, and those that are trusted when joining.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use keystead_tls::ApiTls;

use super::{Check, cluster_certificate, tcp_listeners};
use crate::cli::certificate::Certificate;
use crate::cli::time::Timestamp;
use crate::client::Address;
use crate::config::{ListenerTls, ServerConfig, StorageConfig};
use crate::server::listeners::tls_files;

/// From here on an expiry is a warning.
const SOON_DAYS: i64 = 30;
const DAY: i64 = 86_400;

pub(super) fn check(config: &ServerConfig) -> Check {
    let mut checks = Vec::new();
    for tls in tcp_listeners(config).filter_map(|listener| listener.tls.as_ref()) {
        checks.push(pair(tls));
        if let Ok(certificates) = read(&tls.cert_file) {
            let about = certificates.first();
            checks.extend(certificates.iter().map(|certificate| expiry(certificate, &tls.cert_file)));
            checks.extend(
                about.zip(config.api_addr.as_deref()).map(|(about, api_addr)| names(about, api_addr)),
            );
        }
    }
    let plain = tcp_listeners(config).any(|listener| listener.tls.is_none());
    if plain {
        let advice = "configure tls_cert_file and tls_key_file, unless TLS ends at a proxy on this machine";
        checks.push(Check::warn("Check Listener TLS", "a listener takes requests in the clear", advice));
    }
    if let StorageConfig::Raft(raft) = &config.storage {
        let files = raft.retry_join.iter().filter_map(|stanza| stanza.leader_ca_cert_file.as_deref());
        // One CA for all stanzas is the rule.
        checks.extend(files.collect::<BTreeSet<_>>().into_iter().map(trusted));
        checks.extend(cluster_certificate::check(raft));
    }
    Check::group("Check Certificates", checks)
}

/// Whether the server can use certificate and key: read by the code that will read them.
fn pair(tls: &ListenerTls) -> Check {
    const NAME: &str = "Check Listener Certificate";
    match ApiTls::load(tls_files(tls)) {
        Ok(_) => Check::ok(NAME, format!("{} and its key belong together", tls.cert_file.display())),
        Err(error) => {
            let advice = "correct the file or its path; \"tls inspect\" shows what a certificate says";
            Check::fail(NAME, error.to_string(), advice)
        }
    }
}

fn read(path: &Path) -> Result<Vec<Certificate>, String> {
    let shown = path.display().to_string();
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    Certificate::read_all(&pem, &shown)
}

fn expiry(certificate: &Certificate, path: &Path) -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    expiry_at(certificate, path, i64::try_from(now).unwrap_or(i64::MAX))
}

fn expiry_at(certificate: &Certificate, path: &Path, now: i64) -> Check {
    const NAME: &str = "Check Certificate Expiry";
    let who = format!("{} in {}", certificate.subject, path.display());
    let date = |seconds| Timestamp::of_unix(seconds).whole_seconds();
    let days = (certificate.not_after - now).div_euclid(DAY);
    if now > certificate.not_after {
        let message = format!("{who} ran out at {}", date(certificate.not_after));
        return Check::fail(NAME, message, "renew it; a running server takes the new one on SIGHUP");
    }
    if now < certificate.not_before {
        let message = format!("{who} is valid only from {}", date(certificate.not_before));
        return Check::fail(NAME, message, "check this machine's clock, or wait");
    }
    let message = format!("{who} is valid until {}, for {days} days", date(certificate.not_after));
    if days < SOON_DAYS {
        return Check::warn(NAME, message, "renew it; a running server takes the new one on SIGHUP");
    }
    Check::ok(NAME, message)
}

/// Whether clients that follow `api_addr` find its host in the certificate.
fn names(certificate: &Certificate, api_addr: &str) -> Check {
    const NAME: &str = "Check Names of api_addr";
    let Ok(address) = Address::parse(api_addr) else {
        return Check::skip(NAME, format!("{api_addr} is no address"));
    };
    let host = address.host();
    if certificate.is_for(host) {
        return Check::ok(NAME, format!("the certificate is for {host}"));
    }
    let named = certificate.names().join(", ");
    let named = if named.is_empty() { "nothing" } else { &named };
    let message = format!("api_addr leads to {host}, the certificate is for {named}");
    Check::warn(NAME, message, format!("have {host} put among the certificate's names, or change api_addr"))
}

fn trusted(path: &Path) -> Check {
    const NAME: &str = "Check CA of retry_join";
    let certificates = match read(path) {
        Ok(certificates) => certificates,
        Err(why) => return Check::fail(NAME, why, "correct leader_ca_cert_file"),
    };
    let checks: Vec<_> = certificates.iter().map(|certificate| expiry(certificate, path)).collect();
    Check::group(NAME, checks)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // in a test, a panic is the report
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn an_expiry_is_a_failure_and_a_month_before_a_warning() {
        let (ca, _) = keystead_tls::make::make_ca("Test CA").unwrap();
        let certificate = Certificate::read_all(ca.as_bytes(), "ca").unwrap().remove(0);
        let status = |now| expiry_at(&certificate, Path::new("ca.pem"), now).status;
        let end = certificate.not_after;
        assert_eq!(status(end - SOON_DAYS * DAY), Status::Ok);
        assert_eq!(status(end - SOON_DAYS * DAY + 1), Status::Warn);
        assert_eq!(status(end + 1), Status::Fail);
        assert_eq!(status(certificate.not_before - 1), Status::Fail);
    }
}
