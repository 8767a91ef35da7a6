//! `sys/rotate/config`, and rotating the barrier key when that is due.

use bincode::{Decode, Encode};
use serde_json::json;

use super::{
    Core, codec,
    error::ApiError,
    fields::Fields,
    node_ops::KeyStatus,
    request::Request,
    response::Answer,
    sweep::Swept,
    txn::{Transaction, kind},
};
use crate::barrier::MountId;

const PATH: [&str; 2] = ["core", "rotation"];
/// Most encryptions under one key: nine tenths of the 2^32 that RFC 8452, section 9, allows for random nonces at a wide margin.
const MOST_OPERATIONS: i64 = 3_865_470_566;
const LEAST_OPERATIONS: i64 = 1_000_000;
const LEAST_INTERVAL_S: i64 = 24 * 3600;
/// Encryptions that a leader notes in the keyring at once. A leader that dies takes no more with it.
const NOTED: u64 = 100_000;

/// When the barrier key is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct RotationConfig {
    enabled: bool,
    max_operations: i64,
    /// 0 for never.
    interval_s: i64,
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self { enabled: true, max_operations: MOST_OPERATIONS, interval_s: 0 }
    }
}

impl RotationConfig {
    fn load(txn: &mut Transaction) -> Result<Self, ApiError> {
        match txn.get(MountId::VAULT, &PATH, kind::ROTATION)? {
            Some(record) => codec::decode(&record),
            None => Ok(Self::default()),
        }
    }

    fn change(&mut self, fields: &Fields<'_>) -> Result<(), ApiError> {
        if let Some(enabled) = fields.flag("enabled")? {
            self.enabled = enabled;
        }
        if let Some(max) = fields.integer("max_operations")? {
            if !(LEAST_OPERATIONS..=MOST_OPERATIONS).contains(&max) {
                return Err(ApiError::invalid(format!(
                    "max_operations must be in the range [{LEAST_OPERATIONS}, {MOST_OPERATIONS}]"
                )));
            }
            self.max_operations = max;
        }
        if let Some(interval) = fields.duration_s("interval")? {
            if interval != 0 && interval < LEAST_INTERVAL_S {
                return Err(ApiError::invalid("interval must be at least 24h, or 0 for no rotation by time"));
            }
            self.interval_s = interval;
        }
        Ok(())
    }

    /// Why the key should be rotated now, if it should.
    fn due(self, key: KeyStatus, now_ms: u64) -> Option<&'static str> {
        if !self.enabled {
            return None;
        }
        let age_ms = now_ms.saturating_sub(key.installed_ms);
        if self.interval_s > 0 && age_ms / 1000 >= self.interval_s.unsigned_abs() {
            return Some("its interval is over");
        }
        (key.encryptions >= self.max_operations.unsigned_abs()).then_some("it was used max_operations times")
    }
}

impl Core {
    /// Shows or changes when the barrier key is rotated.
    pub(super) fn rotation_config(
        &self,
        request: &Request,
        txn: &mut Transaction,
    ) -> Result<Answer, ApiError> {
        let mut config = RotationConfig::load(txn)?;
        if request.operation.writes() {
            config.change(&Fields(&request.data))?;
            txn.put(MountId::VAULT, &PATH, kind::ROTATION, codec::encode(&config)?)?;
            return Ok(Answer::NoContent);
        }
        let data = json!({
            "enabled": config.enabled,
            "interval": config.interval_s,
            "max_operations": config.max_operations,
        });
        Ok(Answer::duplicated(data.as_object().cloned().unwrap_or_default()))
    }

    /// Rotates the barrier key if that is due, and notes what it has been used for. To be called on the leader, now and then.
    ///
    /// # Errors
    /// When the node is sealed or does not lead, or the keyring cannot be written; another time will do.
    pub(super) async fn tend_keys(&self) -> Result<Swept, ApiError> {
        let (unsealed, replica) = self.open()?;
        if !replica.leadership().borrow().is_self {
            return Ok(Swept::Nothing);
        }
        let Some(key) = self.node().key_status() else { return Ok(Swept::Nothing) };
        let now_ms = replica.cluster_time_ms();
        let mut txn = Transaction::new(unsealed.barrier.clone(), replica.state(), now_ms);
        if let Some(why) = RotationConfig::load(&mut txn)?.due(key, now_ms) {
            tracing::info!(term = key.term, encryptions = key.encryptions, why, "the barrier key is rotated");
            self.node().rotate().await?;
            return Ok(Swept::Some);
        }
        if key.uncounted >= NOTED {
            self.node().keep_counts().await?;
        }
        Ok(Swept::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_rotated_by_count_and_by_age_and_not_when_that_is_off() {
        let key = |encryptions| KeyStatus {
            term: 1,
            installed_ms: 1_000,
            encryptions,
            uncounted: 0,
            first_installed_ms: 0,
        };
        let config =
            RotationConfig { max_operations: 2_000_000, interval_s: 86_400, ..RotationConfig::default() };
        assert!(config.due(key(1_999_999), 86_400_999).is_none());
        assert!(config.due(key(2_000_000), 0).is_some());
        assert!(config.due(key(0), 86_401_000).is_some());
        assert!(RotationConfig { enabled: false, ..config }.due(key(u64::MAX), u64::MAX).is_none());
        assert!(RotationConfig { interval_s: 0, ..config }.due(key(0), u64::MAX).is_none());
    }
}
