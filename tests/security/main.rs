//! Classes of mistake that systems of this kind have been published for; each has a test that fails if it is made
//! here. `docs/threat-model.md` lists them with their numbers and says where the others are.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/state_rows.rs"]
mod state_rows;

mod absent_seal;
mod control;
mod echo;
mod paths;
