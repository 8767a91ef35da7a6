//! What a Keystead node keeps on disk: the Raft log, the sealed state, snapshots
