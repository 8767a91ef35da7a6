//! `tls inspect`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::read;
use crate::cli::certificate::Certificate;
use crate::cli::output::{self, Document, Format};
use crate::cli::time::Timestamp;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let path = invocation.args[0].clone();
    let pem = read(invocation, path.as_ref())?;
    let certificates = Certificate::read_all(pem.as_bytes(), &path).map_err(|why| invocation.fail(&why))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let all_valid = certificates.iter().all(|certificate| Validity::of(certificate, now) == Validity::Now);
    let (ui, format) = invocation.printer();
    let printed = if format == Format::Table {
        let tables: Vec<_> = certificates.iter().map(|certificate| table(certificate, now)).collect();
        ui.output(&tables.join("\n\n"));
        0
    } else {
        // Documents in a list keep the order of their keys only if the list is put together from documents.
        let documents = certificates.iter().map(|certificate| document(certificate, now)).collect();
        output::print(ui, format, Document::List(documents))
    };
    match printed {
        0 if !all_valid => Err(1),
        code => Ok(code),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Validity {
    NotYet,
    Now,
    Expired,
}

impl Validity {
    fn of(certificate: &Certificate, now: i64) -> Validity {
        match now {
            _ if now < certificate.not_before => Validity::NotYet,
            _ if now > certificate.not_after => Validity::Expired,
            _ => Validity::Now,
        }
    }

    fn as_str(&self) -> &'static str {
        match self {
            Validity::NotYet => "not valid yet",
            Validity::Now => "valid",
            Validity::Expired => "expired",
        }
    }
}

fn table(certificate: &Certificate, now: i64) -> String {
    let days = (certificate.not_after - now).div_euclid(86_400);
    let validity = match Validity::of(certificate, now) {
        Validity::Now => format!("valid, {days} days left"),
        other => other.as_str().to_owned(),
    };
    let rows = [
        ("Subject", certificate.subject.clone()),
        ("Issuer", certificate.issuer.clone()),
        ("Names", certificate.names().join(", ")),
        ("Not Before", Timestamp::of_unix(certificate.not_before).whole_seconds()),
        ("Not After", Timestamp::of_unix(certificate.not_after).whole_seconds()),
        ("Validity", validity),
        ("Key Type", certificate.key_type.clone()),
        ("CA", certificate.is_ca.to_string()),
        ("Serial Number", certificate.serial.clone()),
        ("SHA-256", certificate.sha256.clone()),
    ];
    output::table(&["Key", "Value"], &rows.map(|(name, value)| vec![name.to_owned(), value]))
}

fn document(certificate: &Certificate, now: i64) -> Document {
    let addresses: Vec<String> = certificate.ip_addresses.iter().map(ToString::to_string).collect();
    Document::object([
        ("subject", Value::from(certificate.subject.as_str())),
        ("issuer", certificate.issuer.as_str().into()),
        ("dns_names", certificate.dns_names.clone().into()),
        ("ip_addresses", addresses.into()),
        ("other_names", certificate.other_names.clone().into()),
        ("not_before", Timestamp::of_unix(certificate.not_before).whole_seconds().into()),
        ("not_after", Timestamp::of_unix(certificate.not_after).whole_seconds().into()),
        ("status", Validity::of(certificate, now).as_str().into()),
        ("key_type", certificate.key_type.as_str().into()),
        ("is_ca", certificate.is_ca.into()),
        ("serial_number", certificate.serial.as_str().into()),
        ("sha256", certificate.sha256.as_str().into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validity_is_judged_by_the_clock() {
        let (ca, _) = keystead_tls::make::make_ca("Test CA").unwrap();
        let certificate = Certificate::read_all(ca.as_bytes(), "ca").unwrap().remove(0);
        let end = certificate.not_after;
        assert_eq!(Validity::of(&certificate, end), Validity::Now);
        assert_eq!(Validity::of(&certificate, end + 1), Validity::Expired);
        assert_eq!(Validity::of(&certificate, certificate.not_before - 1), Validity::NotYet);
        let text = table(&certificate, end - 86_400 * 10);
        assert!(text.contains("Validity         valid, 10 days left\n"), "{text}");
        let json = document(&certificate, end + 1).render(Format::Json).unwrap();
        assert!(json.contains("\"status\": \"expired\"") && json.starts_with("{\n  \"subject\""), "{json}");
    }
}
