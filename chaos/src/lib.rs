//! Starts real Keystead clusters as processes and attacks them
