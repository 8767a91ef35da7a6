//! The listeners' certificates while the server runs: read again when their files change, watched for their end.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use keystead_tls::ApiTls;

use super::cluster_certificate::ClusterCertificate;
use crate::{core::Core, node::Node};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(3);
/// From how long before its end a certificate is warned about.
const WARN: Duration = Duration::from_secs(30 * 24 * 3_600);
/// How often that warning is repeated in the log.
const REPEAT: Duration = Duration::from_secs(24 * 3_600);
const DAY_S: u64 = 24 * 3_600;

/// The certificates of all listeners.
pub struct Certificates {
    watched: Vec<Watched>,
}

struct Watched {
    tls: Arc<ApiTls>,
    /// When the files were last changed, as of the last attempt to read them.
    seen: Option<SystemTime>,
    /// The last attempt failed, and has been complained about.
    failed: bool,
    warned: Option<SystemTime>,
}

impl Certificates {
    /// Those that have just been loaded.
    pub fn new(loaded: impl IntoIterator<Item = Arc<ApiTls>>) -> Self {
        let watched = |tls: Arc<ApiTls>| Watched { seen: tls.changed(), tls, failed: false, warned: None };
        Self { watched: loaded.into_iter().map(watched).collect() }
    }

    /// Reads every certificate again: the operator has asked for it.
    pub fn reload(&mut self) {
        for watched in &mut self.watched {
            watched.failed = false;
            watched.reload();
        }
    }

    /// Reads those again whose files have changed, and looks at every date. What is to be said about them goes
    /// to the log, the metrics and `status`.
    pub fn check(&mut self, now: SystemTime) -> Vec<String> {
        let mut warnings = HashMap::<PathBuf, String>::new();
        for watched in &mut self.watched {
            let changed = watched.tls.changed();
            if watched.failed || changed != watched.seen {
                watched.reload();
            }
            let file = watched.tls.cert_file().to_owned();
            let not_after = watched.tls.not_after();
            let ends_s = not_after.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |end| end.as_secs());
            #[expect(clippy::cast_precision_loss, reason = "a date in seconds fits a double's 53 bits")]
            metrics::gauge!("keystead_listener_certificate_not_after_seconds", "file" => file.display().to_string())
                .set(ends_s as f64);
            let Some(text) = warning(not_after, now) else { continue };
            if watched.warned.is_none_or(|at| now.duration_since(at).is_ok_and(|past| past >= REPEAT)) {
                watched.warned = Some(now);
                tracing::warn!(file = %file.display(), "{text}");
            }
            warnings.insert(file, text);
        }
        let mut warnings: Vec<String> = warnings.into_values().collect();
        warnings.sort();
        warnings
    }

    /// Checks these, and those of the cluster port, until the future is dropped.
    ///
    /// # Cancel safety
    /// Nothing is lost but the next check.
    pub async fn watch(certificates: Arc<parking_lot::Mutex<Self>>, core: Arc<Core>, node: Arc<Node>) {
        let mut cluster = ClusterCertificate::default();
        loop {
            let checked = Arc::clone(&certificates);
            let warnings = tokio::task::spawn_blocking(move || checked.lock().check(SystemTime::now())).await;
            let mut warnings = warnings.unwrap_or_default();
            warnings.extend(cluster.check(node.certificate_ends(), SystemTime::now()));
            core.set_warnings(warnings);
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Watched {
    /// A pair that is just being replaced does not fit together for a moment; the old one is served meanwhile,
    /// and the next check tries again.
    fn reload(&mut self) {
        self.seen = self.tls.changed();
        let file = self.tls.cert_file().display();
        match self.tls.reload() {
            Ok(()) => {
                tracing::info!(%file, "listener certificate reloaded");
                (self.failed, self.warned) = (false, None);
            }
            Err(error) if !self.failed => {
                tracing::error!(%file, %error, "listener certificate kept: the new one cannot be used");
                self.failed = true;
            }
            Err(_) => {}
        }
    }
}

/// What is to be said about a certificate's end. `status` shows it to everybody, so no path is named.
fn warning(not_after: SystemTime, now: SystemTime) -> Option<String> {
    let remedy = "replace it and its key; the server reads them when they change";
    match not_after.duration_since(now) {
        Err(_) => Some(format!("a listener's certificate has expired: {remedy}")),
        Ok(left) if left <= WARN => {
            Some(format!("a listener's certificate expires in {} days: {remedy}", left.as_secs() / DAY_S))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use keystead_tls::{ApiTlsFiles, make};

    use super::*;

    fn issue(dir: &std::path::Path, days: u32) {
        let (ca, ca_key) = make::make_ca("CA").unwrap();
        let (cert, key) = make::make_cert(&ca, &ca_key, &["localhost".to_owned()], &[], days).unwrap();
        std::fs::write(dir.join("cert.pem"), cert).unwrap();
        std::fs::write(dir.join("key.pem"), key.as_bytes()).unwrap();
        // The clock of the file system may be too coarse to tell this write from the one before.
        let soon = SystemTime::now() + Duration::from_secs(u64::from(days));
        for file in ["cert.pem", "key.pem"] {
            std::fs::File::options().append(true).open(dir.join(file)).unwrap().set_modified(soon).unwrap();
        }
    }

    #[test]
    fn a_changed_certificate_is_served_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        issue(dir.path(), 10);
        let files = ApiTlsFiles {
            cert_file: dir.path().join("cert.pem"),
            key_file: dir.path().join("key.pem"),
            ..ApiTlsFiles::default()
        };
        let tls = Arc::new(ApiTls::load(files).unwrap());
        let mut certificates = Certificates::new([Arc::clone(&tls)]);
        let warnings = certificates.check(SystemTime::now());
        assert!(
            warnings[0].contains("expires in 9 days") || warnings[0].contains("expires in 10 days"),
            "{warnings:?}"
        );
        let first = tls.not_after();

        issue(dir.path(), 90);
        assert_eq!(certificates.check(SystemTime::now()), Vec::<String>::new());
        let second = tls.not_after();
        assert!(second > first);

        std::fs::write(dir.path().join("key.pem"), "garbage").unwrap();
        certificates.check(SystemTime::now());
        assert_eq!(tls.not_after(), second, "the good pair stays");
        issue(dir.path(), 60);
        certificates.check(SystemTime::now());
        assert!(tls.not_after() < second, "and a good one is taken again");

        let later = SystemTime::now() + Duration::from_secs(61 * DAY_S);
        assert!(certificates.check(later)[0].contains("has expired"));
    }
}
