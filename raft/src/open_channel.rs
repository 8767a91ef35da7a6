//! The proof that turns a connection into an open channel: both sides hold the root key.
//!
//! Each side sends `HMAC(K_peer; "keystead/v1/open-channel", role, exporter, client key hash, server key hash,
//! epoch)`. The exporter (RFC 8446, 7.5) binds the proof to this very connection, so that it can be neither
//! relayed nor replayed; the role keeps a proof from being sent back to its maker.

use crate::vault_side::VaultSide;

const LABEL: &[u8] = b"keystead/v1/open-channel";

/// Hashes of the public keys at the two ends.
pub struct Ends {
    /// Of the side that dialled.
    pub client: [u8; 32],
    /// Of the side that answered.
    pub server: [u8; 32],
}

fn proof(
    vault: &dyn VaultSide,
    role: &[u8],
    exporter: &[u8; 32],
    ends: &Ends,
    epoch: u64,
) -> Option<[u8; 32]> {
    vault.peer_mac(&[LABEL, role, exporter, &ends.client, &ends.server, &epoch.to_be_bytes()])
}

/// What the dialling side sends; `None` while sealed.
pub fn client_proof(vault: &dyn VaultSide, exporter: &[u8; 32], ends: &Ends, epoch: u64) -> Option<[u8; 32]> {
    proof(vault, b"client", exporter, ends, epoch)
}

/// What the answering side sends back; `None` while sealed.
pub fn server_proof(vault: &dyn VaultSide, exporter: &[u8; 32], ends: &Ends, epoch: u64) -> Option<[u8; 32]> {
    proof(vault, b"server", exporter, ends, epoch)
}

/// Whether the dialling side's proof is right. Constant time.
pub fn check_client(vault: &dyn VaultSide, exporter: &[u8; 32], ends: &Ends, epoch: u64, got: &[u8]) -> bool {
    client_proof(vault, exporter, ends, epoch).is_some_and(|expected| equal(&expected, got))
}

/// Whether the answering side's proof is right. Constant time.
pub fn check_server(vault: &dyn VaultSide, exporter: &[u8; 32], ends: &Ends, epoch: u64, got: &[u8]) -> bool {
    server_proof(vault, exporter, ends, epoch).is_some_and(|expected| equal(&expected, got))
}

fn equal(expected: &[u8; 32], got: &[u8]) -> bool {
    use subtle::ConstantTimeEq as _;
    expected.ct_eq(got).into()
}
