//! What a Keystead node keeps on disk: the Raft log, the sealed state, snapshots.
//!
//! Only sealed bytes come here; no key does. Plain threads, blocking calls and callbacks: the layer above
//! brings the runtime. Reading order: [`datadir`], [`log`], [`segment_log`], [`txn`], [`state`],
//! [`tree_state`], [`snapshot`].

pub mod datadir;
pub mod disk_watch;
pub mod error;
pub mod ids;
pub mod keys;
pub mod log;
pub mod segment_log;
pub mod snapshot;
pub mod space;
pub mod state;
pub mod tree_state;
pub mod txn;

mod activation;
mod apply;
mod codec;
mod digest;
mod doubt;
mod flusher;
#[cfg(test)]
mod fuzz_tests;
mod guard;
mod log_disk;
mod log_frame;
mod log_replay;
mod log_view;
mod log_writer;
mod opening;
mod overlay;
mod pieces;
mod promise;
mod replacement;
mod row;
mod row_cache;
mod scan;
mod shared;
mod state_disk;
mod sync_meter;
mod tree;
mod window;

pub use datadir::DataDir;
pub use disk_watch::{DiskStatus, DiskWatch, SLOW_SYNC};
pub use error::StorageError;
pub use guard::expects_panic;
pub use ids::{LogId, RequestId, Version, Vote};
pub use keys::{FolderKey, InvalidKey, RecordKey};
pub use log::{Done, LogBounds, LogRecord, RaftLog, SyncStats};
pub use opening::open;
pub use pieces::Pieces;
pub use segment_log::SegmentLog;
pub use snapshot::{
    CHUNK_BYTES, Installer, Manifest, SnapshotCut, SnapshotFile, SnapshotItem, SnapshotMeta, SnapshotReader,
};
pub use space::{SpaceLevel, SpaceView, Watermarks};
pub use state::{Applied, ApplyEntry, ApplyOp, Child, Observer, Outcome, Record, SealedState};
pub use tree_state::TreeState;
pub use txn::{Activation, Check, CheckpointMark, Command, MAX_OPERATIONS, Txn, Write, operation_count};
