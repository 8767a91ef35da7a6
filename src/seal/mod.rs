//! How the vault is opened: the root key, wrapped by a key that exists as Shamir shares only, or as the ciphertext of
//! a seal that opens by itself ([`AutoSeal`]).
//!
//! [`init`] makes a new root key, wraps it and hands out the shares; [`SealConfig`] is what every node, sealed or
//! not, keeps about it in the clear; [`Share`] is what a key holder types in. Byte formats, all integers big-endian:
//!
//! | what | bytes |
//! |---|---|
//! | share | `1`, generation `[4]`, vault tag `[6]`, x `[1]`, y `[32]`, checksum `[4]` |
//! | bare share | x `[1]`, y `[32]` |
//! | seal configuration | `3`, then bincode (fixed-length integers) of [`SealConfig`] |
#![cfg_attr(test, allow(clippy::unwrap_used))] // in a test, a panic is the report

mod auto;
mod build;
mod config;
mod file;
#[cfg(test)]
mod fuzz_tests;
mod gf256;
mod init;
mod migration;
mod pgp;
mod pkcs11;
mod rotation;
mod shamir;
mod share;
mod unattended;
mod wrap;

pub use auto::{AutoSeal, MAX_BLOB_LEN, SealFault, SealReport, SealedKek};
pub use build::build;
pub use config::{
    Access, OpenError, SealConfig, SealConfigError, SealEntry, SealKind, ShareRejection, ShareSet, Verifier,
};
pub use file::FileSeal;
pub use init::{BREAK_GLASS_SEAL, InitError, InitOutput, InitParams, SHAMIR_SEAL, init, reseal};
pub use migration::recovery_kek;
pub use pgp::{HandedOut, PgpError, PgpKey, holders};
pub use pkcs11::{HELPER_ROLE, KeyFacts, Pkcs11Seal, TokenFacts, own_program, serve_helper};
pub use rotation::NewRoot;
pub use shamir::{CombineError, SharePoint, SplitError, combine, split};
pub use share::{Share, ShareOrigin, ShareTextError, vault_tag};
pub use unattended::{UnattendedError, UnattendedInit, UnattendedInitError, exercise, init_unattended};
pub use wrap::{Wrap, WrapError};
