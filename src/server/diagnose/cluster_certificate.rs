//! The node's certificate for the cluster port, where a CA of the operator's has signed it, or has yet to.

use std::time::{SystemTime, UNIX_EPOCH};

use keystead_raft::{Enrolment, EnrolmentError, Identity};

use super::Check;
use crate::cli::time::Timestamp;
use crate::config::RaftStorageConfig;
use crate::node::CertificateEnds;

const NAME: &str = "Check Cluster Certificate";
const SOON_DAYS: i64 = 30;
const DAY_S: i64 = 86_400;

/// `None` where there is nothing to check: a built-in CA's certificates have no end.
pub(super) fn check(storage: &RaftStorageConfig) -> Option<Check> {
    // What is wrong with an identity that cannot be read is for the checks of the storage to say.
    if let Some(identity) = Identity::load(&storage.path).ok()? {
        let ends = CertificateEnds::of(&identity.cert_der, &identity.ca_cert_der)?;
        return Some(dates(&identity.node_id, ends, now_s()));
    }
    match enrolled(storage) {
        Ok(None) => None,
        Ok(Some((node_id, ends))) => Some(dates(&node_id, ends, now_s())),
        Err(error) => {
            let advice = "the server does not start before this is put right";
            Some(Check::fail(NAME, error.to_string(), advice))
        }
    }
}

fn enrolled(storage: &RaftStorageConfig) -> Result<Option<(String, CertificateEnds)>, EnrolmentError> {
    let Some(enrolment) = Enrolment::load(&storage.path)? else { return Ok(None) };
    let node_id = storage.node_id.clone().unwrap_or_else(|| enrolment.node_id.clone());
    let complete = Enrolment::load_complete(&storage.path, &node_id)?;
    let ends = complete.and_then(|complete| {
        let certificate = complete.certificate.as_ref()?;
        CertificateEnds::of(&certificate.cert_der, &certificate.ca_cert_der)
    });
    Ok(ends.map(|ends| (node_id, ends)))
}

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

fn dates(node_id: &str, ends: CertificateEnds, now_s: i64) -> Check {
    let end_s = ends.certificate_s.min(ends.ca_s);
    let whose =
        if ends.ca_s < ends.certificate_s { "the CA certificate".to_owned() } else { node_id.to_owned() };
    let (until, days) = (Timestamp::of_unix(end_s).whole_seconds(), (end_s - now_s).div_euclid(DAY_S));
    let advice = "\"tls csr\" requests a new certificate, \"tls install\" installs it and its CA's";
    if now_s > end_s {
        let message = format!("{whose} on the cluster port ran out at {until}; the cluster goes on with it");
        return Check::warn(NAME, message, advice);
    }
    let message = format!("{whose} on the cluster port is valid until {until}, for {days} days");
    if days < SOON_DAYS { Check::warn(NAME, message, advice) } else { Check::ok(NAME, message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::diagnose::Status;
    use crate::server::enrol;
    use keystead_tls::{make, own_ca};

    #[test]
    fn an_enrolment_is_judged_before_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = RaftStorageConfig::new(dir.path().join("data"));
        storage.node_id = Some("n1".into());
        assert!(check(&storage).is_none());
        let request = enrol::request(&storage, None).unwrap();
        assert_eq!(check(&storage).unwrap().status, Status::Fail);
        let (ca, key) = make::make_ca("Example CA").unwrap();
        for (days, expected) in [(90, Status::Ok), (10, Status::Warn)] {
            let (_, certificate) = own_ca::sign(&ca, &key, &request.pem, days).unwrap();
            enrol::install(&storage.path, (&certificate, "cert"), (&ca, "ca")).unwrap();
            assert_eq!(check(&storage).unwrap().status, expected, "{days}");
        }
        storage.node_id = Some("n2".into());
        assert_eq!(check(&storage).unwrap().status, Status::Fail);
    }

    #[test]
    fn a_date_that_has_passed_is_a_warning_and_no_failure() {
        let ends = CertificateEnds { certificate_s: 1_000, ca_s: 2_000 };
        assert_eq!(dates("n1", ends, 1_001).status, Status::Warn);
    }
}
