//! `sys/storage/raft/snapshot-auto/*`: snapshots by a schedule, where they go, how many stay, and how the latest went.
//!
//! The fields are those of Vault Enterprise, and three more: `retain_age`, `test_restore`, and `aws_s3_ca_cert`. The
//! records are sealed, for they hold the credentials of stores; those are never shown again. `crate::node` takes the snapshots.

use std::path::{Component, Path};

use bincode::{Decode, Encode};
use keystead_raft::ProposeOutcome;
use serde_json::{Map, Value, json};

use super::{
    Core, codec,
    error::ApiError,
    fields::Fields,
    request::{Operation, Request, fresh_id},
    response::{Answer, Response},
    time::{ZERO_TIME, rfc3339},
    txn::{Transaction, kind},
};
use crate::barrier::MountId;

const FOLDER: [&str; 2] = ["core", "snapshot-auto"];
const STATUS: [&str; 2] = ["core", "snapshot-auto-status"];
const PREFIX: &str = "sys/storage/raft/snapshot-auto/";
/// After a failure it is tried again so soon, or after the interval if that is shorter.
const RETRY_MS: u64 = 60_000;
const MAX_RETAIN: i64 = 10_000;

/// Where snapshots go.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Target {
    /// A directory of the node that takes them.
    Local {
        /// Bytes that all of them may take; 0 for no limit.
        max_space_bytes: u64,
    },
    /// A bucket of a store of the S3 kind.
    S3(Box<S3>),
}

/// A bucket and how it is reached.
#[derive(Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct S3 {
    /// Its name.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// URL or host of the store; empty for that of the region.
    pub endpoint: String,
    /// Speak plain HTTP.
    pub disable_tls: bool,
    /// The bucket is part of the path, not of the host's name.
    pub force_path_style: bool,
    /// Authority of the store's certificate, PEM; empty for those of the system.
    pub ca_cert: String,
    /// Who asks.
    pub access_key_id: String,
    secret_access_key: String,
    session_token: String,
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl S3 {
    /// The key that goes with the id, and the token that goes with both; empty if there is none.
    #[must_use]
    pub fn expose_secrets(&self) -> (&str, &str) {
        (&self.secret_access_key, &self.session_token)
    }
}

/// One schedule.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Schedule {
    /// Seconds from the beginning of one to that of the next.
    pub interval_s: u64,
    /// How many stay.
    pub retain: u64,
    /// Seconds after which one goes, except the newest; 0 for never.
    pub retain_age_s: u64,
    /// The directory, or what their names in the store begin with.
    pub path_prefix: String,
    /// What the names of the files begin with.
    pub file_prefix: String,
    /// Everything in it is opened again, from where it was put.
    pub test_restore: bool,
    /// Where they go.
    pub target: Target,
}

/// How the latest of a schedule went. Times are cluster time, in milliseconds since the Unix epoch; 0 for never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Status {
    /// Failures since the last success.
    pub consecutive_errors: u64,
    /// When the latest began.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    /// Why it failed; empty if it did not.
    pub error: String,
    /// When one succeeded last.
    pub succeeded_ms: u64,
    /// Where that is.
    pub url: String,
    /// Its newest entry.
    pub index: u64,
    /// It was opened from where it was put.
    pub tested: bool,
}

impl Schedule {
    /// When the next one begins.
    #[must_use]
    pub fn next_ms(&self, status: &Status) -> u64 {
        let interval = self.interval_s * 1000;
        match (status.started_ms, status.consecutive_errors) {
            (0, _) => 0,
            (started, 0) => started + interval,
            (_, _) => status.ended_ms + interval.min(RETRY_MS),
        }
    }

    /// Whether there should have been one by now: after twice the interval.
    #[must_use]
    pub fn is_overdue(&self, status: &Status, now_ms: u64) -> bool {
        status.consecutive_errors > 0 && now_ms > status.succeeded_ms.max(1) + 2 * self.interval_s * 1000
    }

    fn read(fields: &Fields<'_>, before: Option<Self>) -> Result<Self, ApiError> {
        let mut schedule = match before {
            Some(before) => before,
            None => Self::begin(fields)?,
        };
        if let Some(interval) = fields.duration_s("interval")? {
            schedule.interval_s = u64::try_from(interval)
                .ok()
                .filter(|interval| *interval > 0)
                .ok_or_else(|| ApiError::invalid("interval must be a positive number of seconds"))?;
        }
        if let Some(retain) = fields.integer("retain")? {
            if !(1..=MAX_RETAIN).contains(&retain) {
                return Err(ApiError::invalid(format!("retain must be in the range [1, {MAX_RETAIN}]")));
            }
            schedule.retain = retain.unsigned_abs();
        }
        if let Some(age) = fields.duration_s("retain_age")? {
            schedule.retain_age_s =
                u64::try_from(age).map_err(|_| ApiError::invalid("retain_age must not be negative"))?;
        }
        if let Some(prefix) = fields.text("path_prefix")? {
            schedule.path_prefix = prefix;
        }
        if let Some(prefix) = fields.text("file_prefix")? {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if prefix.is_empty() || prefix.len() > 128 || !prefix.chars().all(good) {
                return Err(ApiError::invalid("file_prefix must be of letters, digits, '-', '_' and '.'"));
            }
            schedule.file_prefix = prefix;
        }
        if let Some(test) = fields.flag("test_restore")? {
            schedule.test_restore = test;
        }
        match &mut schedule.target {
            Target::Local { max_space_bytes } => {
                if let Some(max) = fields.integer("local_max_space")? {
                    *max_space_bytes = u64::try_from(max)
                        .map_err(|_| ApiError::invalid("local_max_space must not be negative"))?;
                }
            }
            Target::S3(s3) => s3.read(fields)?,
        }
        schedule.check()?;
        Ok(schedule)
    }

    fn begin(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let target = match fields.text_or_empty("storage_type")?.as_str() {
            "local" => Target::Local { max_space_bytes: 0 },
            "aws-s3" => Target::S3(Box::default()),
            "google-gcs" | "azure-blob" => {
                return Err(ApiError::invalid("this storage_type is not built: use local or aws-s3"));
            }
            _ => return Err(ApiError::invalid("storage_type must be local or aws-s3")),
        };
        Ok(Self {
            interval_s: 0,
            retain: 1,
            retain_age_s: 0,
            path_prefix: String::new(),
            file_prefix: "keystead-snapshot".to_owned(),
            test_restore: false,
            target,
        })
    }

    fn check(&self) -> Result<(), ApiError> {
        if self.interval_s == 0 {
            return Err(ApiError::invalid("interval is required"));
        }
        let parts = Path::new(&self.path_prefix).components();
        let mut odd = parts.filter(|part| !matches!(part, Component::Normal(_) | Component::RootDir));
        if odd.next().is_some() || self.path_prefix.contains('\0') {
            return Err(ApiError::invalid("path_prefix must not contain '.' or '..'"));
        }
        match &self.target {
            Target::Local { .. } if !self.path_prefix.starts_with('/') => Err(ApiError::invalid(
                "path_prefix is required, and is an absolute path, where storage_type is local",
            )),
            Target::S3(s3) if s3.bucket.is_empty() => Err(ApiError::invalid("aws_s3_bucket is required")),
            _ => Ok(()),
        }
    }

    fn to_json(&self) -> Map<String, Value> {
        let mut data = json!({
            "interval": self.interval_s,
            "retain": self.retain,
            "retain_age": self.retain_age_s,
            "path_prefix": self.path_prefix,
            "file_prefix": self.file_prefix,
            "test_restore": self.test_restore,
        });
        match &self.target {
            Target::Local { max_space_bytes } => {
                data["storage_type"] = "local".into();
                data["local_max_space"] = (*max_space_bytes).into();
            }
            Target::S3(s3) => {
                data["storage_type"] = "aws-s3".into();
                data["aws_s3_bucket"] = s3.bucket.as_str().into();
                data["aws_s3_region"] = s3.region.as_str().into();
                data["aws_s3_endpoint"] = s3.endpoint.as_str().into();
                data["aws_s3_disable_tls"] = s3.disable_tls.into();
                data["aws_s3_force_path_style"] = s3.force_path_style.into();
                data["aws_s3_ca_cert"] = s3.ca_cert.as_str().into();
                data["aws_access_key_id"] = s3.access_key_id.as_str().into();
            }
        }
        data.as_object().cloned().unwrap_or_default()
    }
}

impl S3 {
    fn read(&mut self, fields: &Fields<'_>) -> Result<(), ApiError> {
        for (name, field) in [
            ("aws_s3_bucket", &mut self.bucket),
            ("aws_s3_region", &mut self.region),
            ("aws_s3_endpoint", &mut self.endpoint),
            ("aws_s3_ca_cert", &mut self.ca_cert),
            ("aws_access_key_id", &mut self.access_key_id),
            ("aws_secret_access_key", &mut self.secret_access_key),
            ("aws_session_token", &mut self.session_token),
        ] {
            if let Some(text) = fields.text(name)? {
                *field = text;
            }
        }
        for (name, field) in [
            ("aws_s3_disable_tls", &mut self.disable_tls),
            ("aws_s3_force_path_style", &mut self.force_path_style),
        ] {
            if let Some(flag) = fields.flag(name)? {
                *field = flag;
            }
        }
        for unknown in ["aws_s3_enable_kms", "aws_s3_server_side_encryption", "aws_s3_kms_key"] {
            if fields.value(unknown).is_some() {
                return Err(ApiError::invalid(format!(
                    "{unknown} is not built: what is stored is sealed; a default for the bucket does the same"
                )));
            }
        }
        Ok(())
    }
}

impl Status {
    fn to_json(&self, schedule: &Schedule) -> Map<String, Value> {
        let time = |ms: u64| if ms == 0 { ZERO_TIME.to_owned() } else { rfc3339(ms) };
        let data = json!({
            "consecutive_errors": self.consecutive_errors,
            "last_snapshot_start": time(self.started_ms),
            "last_snapshot_end": time(self.ended_ms),
            "last_snapshot_error": self.error,
            "last_snapshot_success": time(self.succeeded_ms),
            "last_snapshot_url": self.url,
            "last_snapshot_index": self.index,
            "last_snapshot_tested": self.tested,
            "next_snapshot_start": time(schedule.next_ms(self)),
        });
        data.as_object().cloned().unwrap_or_default()
    }
}

fn below<'p>(folder: [&'p str; 2], name: &'p str) -> [&'p str; 3] {
    [folder[0], folder[1], name]
}

fn load(txn: &mut Transaction, name: &str) -> Result<Option<Schedule>, ApiError> {
    let record = txn.get(MountId::VAULT, &below(FOLDER, name), kind::SNAPSHOT_AUTO)?;
    record.map(|record| codec::decode(&record)).transpose()
}

fn status(txn: &mut Transaction, name: &str) -> Result<Status, ApiError> {
    let record = txn.get(MountId::VAULT, &below(STATUS, name), kind::SNAPSHOT_AUTO_STATUS)?;
    record.map_or(Ok(Status::default()), |record| codec::decode(&record))
}

impl Core {
    /// Shows and changes the schedules.
    pub(super) fn snapshot_auto(&self, request: &Request, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let path = request.path.as_str().strip_prefix(PREFIX).unwrap_or_default();
        if request.operation == Operation::List {
            return Answer::keys(
                txn.list(MountId::VAULT, &FOLDER)?.into_iter().map(|name| name.name).collect(),
            );
        }
        let (what, name) = path.split_once('/').unwrap_or((path, ""));
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 128 || !name.chars().all(good) {
            return Err(ApiError::invalid("the name of a schedule is of letters, digits, '-', '_' and '.'"));
        }
        let before = load(txn, name)?;
        match (what, request.operation) {
            ("status", _) => {
                let schedule = before.ok_or(ApiError::NotFound)?;
                Ok(Answer::data(status(txn, name)?.to_json(&schedule)))
            }
            (_, Operation::Read) => Ok(Answer::data(before.ok_or(ApiError::NotFound)?.to_json())),
            (_, Operation::Delete) => {
                txn.delete(MountId::VAULT, &below(FOLDER, name))?;
                txn.delete(MountId::VAULT, &below(STATUS, name))?;
                Ok(Answer::NoContent)
            }
            _ => {
                let schedule = Schedule::read(&Fields(&request.data), before)?;
                if matches!(schedule.target, Target::Local { .. }) {
                    self.node().may_store(Path::new(&schedule.path_prefix))?;
                }
                let record = codec::encode(&schedule)?;
                txn.put(MountId::VAULT, &below(FOLDER, name), kind::SNAPSHOT_AUTO, record)?;
                Ok(Answer::NoContent)
            }
        }
    }

    /// Every schedule, and how its latest snapshots went.
    ///
    /// # Errors
    /// While the node is sealed, and when a record cannot be read.
    pub fn snapshot_schedules(&self) -> Result<Vec<(String, Schedule, Status)>, ApiError> {
        let (unsealed, replica) = self.open()?;
        let mut txn = Transaction::new(unsealed.barrier.clone(), replica.state(), replica.cluster_time_ms());
        let mut all = Vec::new();
        for name in txn.list(MountId::VAULT, &FOLDER)? {
            if let Some(schedule) = load(&mut txn, &name.name)? {
                let status = status(&mut txn, &name.name)?;
                all.push((name.name, schedule, status));
            }
        }
        Ok(all)
    }

    /// Writes down how a snapshot of a schedule went, unless the schedule is gone.
    ///
    /// # Errors
    /// When this node does not lead any more, or cannot write.
    pub async fn note_snapshot(&self, name: &str, status: &Status) -> Result<(), ApiError> {
        let (unsealed, replica) = self.open()?;
        let mut txn = Transaction::new(unsealed.barrier.clone(), replica.state(), replica.cluster_time_ms());
        if load(&mut txn, name)?.is_none() {
            return Ok(());
        }
        let record = codec::encode(status)?;
        txn.put(MountId::VAULT, &below(STATUS, name), kind::SNAPSHOT_AUTO_STATUS, record)?;
        let nobody = Response { id: fresh_id(), result: Ok(Answer::NoContent) };
        let entry = txn.into_entry(nobody.id, &nobody)?;
        match replica.propose(entry).await {
            Ok(ProposeOutcome::Applied(_) | ProposeOutcome::Duplicate { .. }) => Ok(()),
            Ok(ProposeOutcome::Conflict { .. }) => {
                Err(ApiError::Busy("the schedule was changed meanwhile".to_owned()))
            }
            Err(error) => Err(ApiError::Busy(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: Value, before: Option<Schedule>) -> Result<Schedule, ApiError> {
        Schedule::read(&Fields(fields.as_object().unwrap()), before)
    }

    fn local() -> Value {
        json!({ "storage_type": "local", "interval": "1h", "path_prefix": "/var/backups" })
    }

    #[test]
    fn the_next_one_begins_an_interval_after_the_last_began_and_sooner_after_a_failure() {
        let schedule = read(local(), None).unwrap();
        let mut status = Status::default();
        assert_eq!(schedule.next_ms(&status), 0);
        (status.started_ms, status.ended_ms, status.succeeded_ms) = (5_000, 9_000, 9_000);
        assert_eq!(schedule.next_ms(&status), 3_605_000);
        assert!(!schedule.is_overdue(&status, u64::MAX), "it did not fail");
        status.consecutive_errors = 1;
        assert_eq!(schedule.next_ms(&status), 69_000);
        assert!(!schedule.is_overdue(&status, 7_209_000) && schedule.is_overdue(&status, 7_209_001));
    }

    #[test]
    fn wrong_schedules_are_refused_and_credentials_are_not_shown() {
        for (field, value) in [
            ("interval", json!(0)),
            ("retain", json!(0)),
            ("path_prefix", json!("relative")),
            ("path_prefix", json!("/var/../etc")),
            ("file_prefix", json!("a/b")),
            ("storage_type", json!("azure-blob")),
            ("storage_type", json!("floppy")),
        ] {
            let mut fields = local();
            fields[field] = value.clone();
            assert!(matches!(read(fields, None), Err(ApiError::Invalid(_))), "{field} {value}");
        }
        let s3 = json!({
            "storage_type": "aws-s3", "interval": 60, "aws_s3_bucket": "b", "aws_access_key_id": "id",
            "aws_secret_access_key": "hidden-key", "aws_session_token": "hidden-token",
        });
        let schedule = read(s3, None).unwrap();
        let shown = format!("{:?} {}", schedule, Value::Object(schedule.to_json()));
        assert!(!shown.contains("hidden") && shown.contains("\"id\""), "{shown}");
        let changed = read(json!({ "retain": 7 }), Some(schedule)).unwrap();
        let Target::S3(s3) = &changed.target else { panic!("{changed:?}") };
        assert_eq!((changed.retain, s3.expose_secrets()), (7, ("hidden-key", "hidden-token")));
    }
}
