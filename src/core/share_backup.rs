//! `sys/rekey/backup` and `sys/rekey/recovery-key-backup`: shares that a rekey made, encrypted for their holders.

use bincode::{Decode, Encode};
use keystead_storage::Write;
use serde_json::{Map, Value, json};

use super::{
    Core, codec,
    error::ApiError,
    node_ops::RekeyTarget,
    request::{Operation, Request},
    response::Answer,
    txn::{Transaction, kind, seal_record},
};
use crate::barrier::{Barrier, MountId};

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ShareBackup {
    /// Of the rekey.
    pub nonce: String,
    /// Each message with a share, in hexadecimal and in base64, by the fingerprint of its holder's key.
    pub shares: Vec<(String, String, String)>,
}

impl ShareBackup {
    /// The write that keeps it, in the place of an older one.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn write(&self, target: RekeyTarget, barrier: &Barrier) -> Result<Write, ApiError> {
        let record = codec::encode(self)?;
        seal_record(barrier, MountId::VAULT, &path(target), kind::SHARE_BACKUP, &record)
    }

    fn to_json(&self) -> Map<String, Value> {
        let (mut hex, mut base64) = (Map::new(), Map::new());
        for (fingerprint, in_hex, in_base64) in &self.shares {
            for (all, text) in [(&mut hex, in_hex), (&mut base64, in_base64)] {
                let of_holder = all.entry(fingerprint.clone()).or_insert_with(|| json!([]));
                if let Value::Array(of_holder) = of_holder {
                    of_holder.push(text.as_str().into());
                }
            }
        }
        let data = json!({ "nonce": self.nonce, "keys": hex, "keys_base64": base64 });
        data.as_object().cloned().unwrap_or_default()
    }
}

fn path(target: RekeyTarget) -> [&'static str; 3] {
    ["core", "share-backup", target.name()]
}

impl Core {
    /// Shows or forgets a backup.
    pub(super) fn share_backup(&self, request: &Request, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let target = match request.path.as_str().ends_with("/recovery-key-backup") {
            true => RekeyTarget::Recovery,
            false => RekeyTarget::Barrier,
        };
        let path = path(target);
        if request.operation == Operation::Delete {
            txn.delete(MountId::VAULT, &path)?;
            return Ok(Answer::NoContent);
        }
        let record = txn.get(MountId::VAULT, &path, kind::SHARE_BACKUP)?;
        let record = record.ok_or_else(|| ApiError::invalid("no backed-up keys found"))?;
        Ok(Answer::duplicated(codec::decode::<ShareBackup>(&record)?.to_json()))
    }
}
