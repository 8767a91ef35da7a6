//! Replication between Keystead nodes: openraft, the cluster port, membership, leadership
