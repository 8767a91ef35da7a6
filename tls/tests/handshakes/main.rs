//! Handshakes over real sockets on loopback: who gets in on which port, and who does not.

#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod api_client;
mod api_listener;
mod cluster_port;
mod loopback;
