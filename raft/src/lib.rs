//! Replication between Keystead nodes.
//!
//! This crate carries bytes that are already sealed. It knows the consensus library (openraft), the cluster
//! port and membership; it never sees a key, a path or a value in the clear. Reading order: [`replicated`] (what
//! the vault sees), [`entry`] (the log's bytes), [`machine`] and [`log_store`] (the library's two storages),
//! [`frame`], [`hello`], [`conn`], [`pool`], [`server`] (the cluster port), [`network`], then [`shared`], which
//! puts it all together behind [`replica`], and what runs beside it: [`proposer`], [`reads`], [`leadership`], [`membership`],
//! [`autopilot`], [`safety`].

pub mod autopilot;
pub mod background;
pub mod changes;
pub mod clock;
pub mod codec;
pub mod conn;
pub mod directory;
pub mod enrolment;
pub mod entry;
pub mod frame;
#[cfg(test)]
mod fuzz_tests;
pub mod hello;
pub mod identity;
pub mod leadership;
pub mod log_store;
pub mod machine;
pub mod membership;
pub mod network;
pub mod open_channel;
pub mod peers;
pub mod pool;
pub mod proposer;
pub mod reads;
pub mod recovery;
pub mod replica;
pub mod replicated;
pub mod safety;
pub mod server;
pub mod shared;
pub mod spool;
pub mod standing;
#[allow(missing_docs)] // the library's macro writes the associated types
pub mod types;
pub mod unsealing;
pub mod vault_side;
pub mod verification;
pub mod wire;

pub use autopilot::{AutopilotConfig, AutopilotState, ServerState};
pub use directory::{Directory, DirectoryMember};
pub use enrolment::{Enrolment, EnrolmentError, OwnCertificate};
pub use identity::{ClusterParams, Identity, fresh_incarnation};
pub use replica::{JoinError, MemberView, Replica, ReplicaConfig};
pub use replicated::{
    BoxFuture, ForwardError, LeaderInfo, Leadership, ProposeError, ProposeOutcome, ReadBarrier, ReadError,
    Replicated, Shortage,
};
pub use safety::{Safety, StepDownError};
pub use unsealing::{Candidate, Condition};
pub use vault_side::{Peer, VaultSide, Verdict};
pub use verification::{MemberDigest, Verification};
