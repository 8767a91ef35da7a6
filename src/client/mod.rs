//! A small HTTP client for the Vault API: HTTP/1.1 over TCP or TLS, with a few idle connections kept.
//!
//! The command line talks to a server through it, a starting node asks its `retry_join` addresses through
//! it, and so do the end-to-end tests. It carries bytes and knows nothing of envelopes or error bodies.
//!
//! Failures to reach a server are worded as Go's `net/http` words them, because scripts that drive Vault's
//! command line match those texts.

#![cfg_attr(test, allow(clippy::unwrap_used))] // in a test, a panic is the report

mod address;
mod body;
mod config;
mod connect;
mod error;
mod http;

pub use address::{Address, AddressError, Scheme, escape_path};
pub use config::{ClientConfig, Token};
pub use error::{ClientError, Failure};
pub use http::{Client, Response};
