//! Keystead: a Raft-replicated clustered key vault that answers the Vault HTTP API.
//!
//! Reading order: [`secret`], [`seal`] and [`barrier`] (what is sealed, and how), [`core`] and [`engines`] (a
//! request's way through), [`api`] (HTTP), [`node`] (init, unseal, join: the life of a node), [`server`] (the
//! process), [`config`], [`client`] and [`cli`]. Replication and storage are crates of their own; see
//! `docs/design.md`.

pub mod api;
pub mod backup;
pub mod barrier;
pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod engines;
pub mod node;
pub mod seal;
pub mod secret;
pub mod server;
