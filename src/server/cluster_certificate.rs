//! The certificates of the cluster port while the server runs, where a CA of the operator's has signed them.
//!
//! Their dates decide nothing: nodes that know each other go on talking past them. But they were chosen by somebody
//! for a reason, so their end is warned about, and stays a warning until a new certificate is installed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::node::CertificateEnds;

/// From how long before its end a certificate is warned about, in seconds.
const WARN_S: i64 = 30 * DAY_S;
const DAY_S: i64 = 24 * 3_600;
/// How often that warning is repeated in the log.
const REPEAT: Duration = Duration::from_secs(24 * 3_600);

/// Watches the dates.
#[derive(Default)]
pub struct ClusterCertificate {
    warned: Option<SystemTime>,
}

impl ClusterCertificate {
    /// What is to be said about the certificates now. It goes to the metrics, and once a day to the log.
    pub fn check(&mut self, ends: Option<CertificateEnds>, now: SystemTime) -> Vec<String> {
        let Some(ends) = ends else { return Vec::new() };
        for (of, end_s) in [("node", ends.certificate_s), ("ca", ends.ca_s)] {
            #[expect(clippy::cast_precision_loss, reason = "a date in seconds fits a double's 53 bits")]
            metrics::gauge!("keystead_cluster_certificate_not_after_seconds", "of" => of).set(end_s as f64);
        }
        let warnings = warnings(ends, now);
        if !warnings.is_empty()
            && self.warned.is_none_or(|at| now.duration_since(at).is_ok_and(|past| past >= REPEAT))
        {
            self.warned = Some(now);
            warnings.iter().for_each(|text| tracing::warn!("{text}"));
        }
        warnings
    }
}

fn warnings(ends: CertificateEnds, now: SystemTime) -> Vec<String> {
    let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now_s = i64::try_from(now_s).unwrap_or(i64::MAX);
    let about = |what: &str, end_s: i64, remedy: &str| {
        let goes_on = "the cluster goes on with it";
        match end_s - now_s {
            left if left < 0 => Some(format!("{what} has expired; {goes_on}: {remedy}")),
            left if left <= WARN_S => Some(format!("{what} expires in {} days: {remedy}", left / DAY_S)),
            _ => None,
        }
    };
    let renew = "make a request with `keystead tls csr`, have it signed, and install it";
    let reissue =
        "have it issued again under the same name and key, and install it with each node's certificate";
    [
        about("this node's certificate for the cluster port", ends.certificate_s, renew),
        about("the CA certificate of the cluster port", ends.ca_s, reissue),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_announced_and_then_stated() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let at = |days: i64, ca_days: i64| {
            let end = |days: i64| 1_000_000_000 + days * DAY_S;
            warnings(CertificateEnds { certificate_s: end(days), ca_s: end(ca_days) }, now)
        };
        assert_eq!(at(31, 31), Vec::<String>::new());
        assert!(at(30, 99)[0].contains("this node's certificate for the cluster port expires in 30 days"));
        let both = at(-1, -1);
        assert_eq!(both.len(), 2);
        assert!(
            both[0].contains("has expired; the cluster goes on") && both[1].contains("the CA certificate")
        );
    }

    #[test]
    fn a_built_in_ca_is_nothing_to_watch() {
        assert!(ClusterCertificate::default().check(None, SystemTime::now()).is_empty());
    }
}
