//! Attackers with what they can really get: a place in the network, a stolen disk, a stolen certificate.
//!
//! They are processes or sockets on the real ports of real nodes. What they may achieve is in
//! `docs/threat-model.md`; here is what they may not.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/state_rows.rs"]
mod state_rows;

mod attacker;
mod clone;
mod disk;
mod false_leader;
mod frames;
