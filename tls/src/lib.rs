//! Certificates and rustls configurations of Keystead's two ports.
//!
//! The *cluster port* connects nodes with each other: mutual TLS 1.3 under the cluster's built-in CA
//! ([`ClusterCa`]) or one of the operator's ([`own_ca`]), identities in the certificates ([`PeerName`]), and no clock in any decision
//! ([`ClusterTls`]). The *API port* serves clients ([`ApiTls`]) and is what nodes, the command line and
//! tests speak to as clients ([`ClientTls`]). [`make`] makes certificates for the API port for those who
//! have no PKI of their own.
//!
//! [`FairShare`] bounds what those who connect may take, in all and each; [`Seldom`] what is logged of them.
//!
//! Every configuration names its cryptography provider; nothing here depends on, or sets, the
//! process-wide default of rustls.

#![cfg_attr(test, allow(clippy::unwrap_used))] // in a test, a panic is the report

pub mod api_client;
pub mod api_listener;
pub mod cluster_ca;
pub mod cluster_port;
pub mod error;
pub mod fair_share;
pub mod keys;
pub mod make;
pub mod node_key;
pub mod own_ca;
pub mod peer;
mod public_key;
pub mod seldom;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use api_client::ClientTls;
pub use api_listener::{ApiTls, ApiTlsFiles, MinVersion};
pub use cluster_ca::ClusterCa;
pub use cluster_port::{ClusterTls, PeerPolicy, exporter};
pub use error::{Error, Result};
pub use fair_share::{Exhausted, FairShare, Portion};
pub use node_key::NodeKey;
pub use peer::{ClusterId, NODE_ID_MAX_BYTES, PeerIdentity, PeerName, peer_identity, peer_of};
pub use seldom::Seldom;

/// The provider behind every configuration of this crate: aws-lc-rs with the hybrid post-quantum key
/// exchange X25519MLKEM768 offered first.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
