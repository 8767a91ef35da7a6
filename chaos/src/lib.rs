//! Starts real Keystead clusters as processes and attacks them.
//!
//! Only tests and drills use this crate. It knows the binary by what everybody can see of it: its command
//! line, its configuration file, its HTTP API, its signals. Everything it starts listens on loopback, ends
//! with the value that holds it, and every wait has a deadline.
//!
//! Reading order: [`cluster`] (a cluster and its nodes), [`node`] and [`process`] (one of them), [`client`]
//! (HTTPS), [`wait`] (deadlines), then what hurts: [`faults`] (disk and clocks), [`images`] (what a power cut
//! leaves), [`net`] (a network between the nodes that stalls and cuts), [`load`] (writes whose acknowledgements are
//! remembered and checked), [`lin`] (whether what clients saw has an explanation), [`impostor`] (a server that is not
//! what it says), [`scan`] (looks for plaintext); [`softhsm`] stands for hardware.

pub mod certs;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod error;
pub mod faults;
pub mod images;
pub mod impostor;
pub mod lin;
pub mod load;
pub mod memory;
pub mod net;
pub mod node;
pub mod ports;
pub mod process;
pub mod raw;
pub mod scan;
pub mod scratch;
pub mod skip;
pub mod softhsm;
pub mod stacks;
pub mod wait;

pub use certs::Pki;
pub use cli::{Cli, Output};
pub use client::{Client, Response};
pub use cluster::{Builder, Cluster, Keys};
pub use config::NodeConfig;
pub use error::{Error, Result};
pub use faults::{Clock, Errno, Faults, Op, Rule};
pub use impostor::Impostor;
pub use load::{History, Load};
pub use net::{Direction, Net};
pub use node::Node;
pub use process::Process;
pub use skip::skip;
