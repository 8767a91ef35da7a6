//! The seal configuration: what a sealed node must know to be opened, in the clear and under a MAC.
//!
//! The MAC's key comes from the root key, so that a sealed node cannot check it: it trusts the configuration only so
//! far as to collect shares, and refuses it as soon as the root key is known and the MAC is wrong.

use std::fmt;

use super::auto::{MAX_BLOB_LEN, SealedKek};
use super::shamir::{CombineError, SharePoint, combine};
use super::share::{Share, vault_tag};
use super::wrap::{Wrap, WrapError};
use crate::barrier::{Mac, SealCfg, VaultId, derive, root_commitment};
use crate::secret::{Kek, RootKey, on_wiped_stack};
use subtle::ConstantTimeEq;

const VERSION: u8 = 3;
const MAC_TAG: &str = "keystead/v1/seal-config";
const VERIFIER_TAG: &str = "keystead/v1/share-verifier";
/// Far above what 255 shares in several seals take.
const MAX_LEN: usize = 256 * 1024;
const MAX_SEALS: usize = 16;
const MAX_NAME_LEN: usize = 256;

/// What protects a wrap's KEK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[non_exhaustive]
pub enum SealKind {
    /// It is split into shares.
    Shamir,
    /// A token behind a PKCS#11 module encrypts it.
    Pkcs11,
    /// A key in a file encrypts it: for development, it protects nothing.
    File,
}

impl SealKind {
    /// The name by which `sys/seal-status` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shamir => "shamir",
            Self::Pkcs11 => "pkcs11",
            Self::File => "file",
        }
    }

    /// The number under the MAC; never used for another kind.
    fn number(self) -> u8 {
        match self {
            Self::Shamir => 1,
            Self::Pkcs11 => 2,
            Self::File => 3,
        }
    }
}

impl fmt::Display for SealKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What recognises one share without giving it away.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Verifier {
    /// The share's x.
    pub x: u8,
    /// HMAC-SHA256 under the seal's public salt over vault id, generation, x and y.
    pub tag: [u8; 32],
}

/// Shares that were handed out together: how many there are, how many are needed, and what recognises each.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ShareSet {
    /// The root generation in which it was made, which its shares name. Recovery shares outlive it.
    pub generation: u32,
    /// Shares that were made.
    pub shares: u8,
    /// Shares that are needed.
    pub threshold: u8,
    /// Salt of the verifiers, public and drawn for each set, so that a share of one is no share of another.
    pub verifier_salt: [u8; 32],
    /// One for every share.
    pub verifiers: Vec<Verifier>,
}

/// How a seal comes by its KEK.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Access {
    /// Key holders put it together.
    Shares(ShareSet),
    /// A seal that opens by itself decrypts it.
    Sealed {
        /// What the seal is.
        kind: SealKind,
        /// The KEK, encrypted by it.
        kek: SealedKek,
    },
}

/// One seal, that is one way to the root key.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SealEntry {
    /// Its name, unique among the seals.
    pub name: String,
    /// How its KEK is come by.
    pub access: Access,
    /// The root key under the KEK.
    pub wrap: Wrap,
}

/// How this vault is opened. All of it is public.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SealConfig {
    /// The vault.
    pub vault_id: VaultId,
    /// Counted from 1; a new root key has the next.
    pub root_generation: u32,
    /// What every wrap must open to, see [`root_commitment`].
    pub root_commitment: [u8; 32],
    /// The ways to the root key.
    pub seals: Vec<SealEntry>,
    /// Shares that prove who may rekey and make a new root token, where no shares open the vault. They open nothing.
    pub recovery: Option<ShareSet>,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// HMAC-SHA256 over everything above, under a key derived from the root key.
    pub mac: [u8; 32],
}

/// What is wrong with a seal configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealConfigError {
    /// A format this version does not know.
    #[error(
        "seal configuration has format {version}, of which this version of Keystead knows nothing; use a newer one"
    )]
    UnknownVersion {
        /// The format it names.
        version: u8,
    },
    /// It cannot be what this program wrote.
    #[error("seal configuration is damaged ({what}); rebuild this node from its peers or restore a backup")]
    Malformed {
        /// What does not fit.
        what: &'static str,
    },
    /// The root key is another one than the configuration commits to.
    #[error("the root key is not the one of this seal configuration")]
    WrongRoot,
    /// A field was changed since the configuration was made.
    #[error(
        "seal configuration was changed by somebody without the root key; rebuild this node from its peers"
    )]
    Tampered,
}

/// Why a share is not taken. Each message says what to do; none shows the share.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareRejection {
    /// It names another vault.
    #[error("the share belongs to another vault; enter one that was handed out for this vault")]
    Foreign,
    /// It names an older root key.
    ///
    /// A node that may lag behind asks the leader before it says so.
    #[error(
        "the share is stale: it is of root key generation {share_generation}, which generation {current} has \
         replaced; enter a share that was handed out since"
    )]
    Stale {
        /// The share's generation.
        share_generation: u32,
        /// The configuration's.
        current: u32,
    },
    /// It names a root key that this node does not know yet.
    #[error(
        "the share opens root key generation {share_generation}, and this node knows none after {current}: let it \
         catch up with the leader, or unseal a node that has"
    )]
    Newer {
        /// The share's generation.
        share_generation: u32,
        /// The configuration's.
        current: u32,
    },
    /// It names this vault and root key, and is none of the shares.
    #[error("share {x} is not as it was handed out: it was mistyped or changed; enter it again")]
    Mistyped {
        /// The share's number.
        x: u8,
    },
    /// It is bare and none of the shares, for a reason it cannot tell.
    #[error(
        "share {x} is none of this vault's present shares: it was mistyped, replaced by a rekey or handed out for \
         another vault; enter the share in its full form to learn which"
    )]
    Unrecognised {
        /// The share's number.
        x: u8,
    },
    /// It is a recovery share.
    #[error(
        "share {x} is a recovery share, which opens nothing; enter break-glass shares, or look at the server's log for \
         what keeps the seals from opening this vault"
    )]
    Recovery {
        /// The share's number.
        x: u8,
    },
    /// The vault is not opened by shares.
    #[error(
        "this vault is not opened by shares but by its seals, by itself: look at the server's log for what keeps them \
         from it; recovery shares open nothing"
    )]
    NoShamirSeal,
}

/// Why shares did not open the vault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The vault is not opened by shares.
    #[error("this vault has no seal that takes shares")]
    NoShamirSeal,
    /// More are needed.
    #[error("{given} shares were given and {needed} are needed")]
    NotEnough {
        /// How many there were.
        given: usize,
        /// The threshold.
        needed: u8,
    },
    /// They do not go together.
    #[error(transparent)]
    Combine(#[from] CombineError),
    /// The shares, or the wrap and what it depends on.
    #[error("the shares do not open the root key: {0}")]
    Wrap(#[from] WrapError),
    /// The root key was found and does not bear out the configuration.
    #[error(transparent)]
    Config(#[from] SealConfigError),
}

impl ShareSet {
    /// The set of the shares that stand for `points`, with a fresh salt given by the caller.
    pub(super) fn of(
        verifier_salt: [u8; 32],
        vault_id: VaultId,
        generation: u32,
        points: &[SharePoint],
        threshold: u8,
    ) -> Self {
        let tag = |point: &SharePoint| verifier(&verifier_salt, vault_id, generation, point).finish();
        let verifiers: Vec<_> = points.iter().map(|point| Verifier { x: point.x, tag: tag(point) }).collect();
        let shares = u8::try_from(verifiers.len()).expect("no more than 255 shares are ever made");
        Self { generation, shares, threshold, verifier_salt, verifiers }
    }

    fn check(&self, newest: u32) -> Result<(), &'static str> {
        let numbers_fit = (1..=self.shares).contains(&self.threshold);
        let distinct = self.verifiers.iter().enumerate().all(|(n, verifier)| {
            verifier.x != 0 && self.verifiers[..n].iter().all(|earlier| earlier.x != verifier.x)
        });
        match () {
            () if !numbers_fit => Err("shares and threshold"),
            () if self.generation > newest => Err("root generation of shares"),
            () if self.verifiers.len() != usize::from(self.shares) || !distinct => Err("verifiers"),
            () => Ok(()),
        }
    }

    /// Whether the point is one of this set's shares.
    fn knows(&self, vault_id: VaultId, point: &SharePoint) -> bool {
        let mac = verifier(&self.verifier_salt, vault_id, self.generation, point);
        self.verifiers
            .iter()
            .find(|verifier| verifier.x == point.x)
            .is_some_and(|known| mac.verify(&known.tag))
    }

    fn signed_into(&self, mut mac: Mac) -> Mac {
        mac = mac
            .u32(self.generation)
            .u8(self.shares)
            .u8(self.threshold)
            .field(&self.verifier_salt)
            .u32(count(self.verifiers.len()));
        for verifier in &self.verifiers {
            mac = mac.u8(verifier.x).field(&verifier.tag);
        }
        mac
    }
}

impl SealEntry {
    /// What protects the KEK.
    #[must_use]
    pub fn kind(&self) -> SealKind {
        match &self.access {
            Access::Shares(_) => SealKind::Shamir,
            Access::Sealed { kind, .. } => *kind,
        }
    }

    /// Names the key inside the seal that encrypted the KEK; empty for shares.
    #[must_use]
    pub fn key_id(&self) -> &str {
        match &self.access {
            Access::Shares(_) => "",
            Access::Sealed { kek, .. } => &kek.key_id,
        }
    }

    fn check(&self, generation: u32) -> Result<(), &'static str> {
        match () {
            () if self.name.is_empty() || self.name.len() > MAX_NAME_LEN => Err("name of a seal"),
            () if self.wrap.seal_name != self.name => Err("seal name in a wrap"),
            () if self.wrap.root_generation != generation => Err("root generation in a wrap"),
            () => match &self.access {
                Access::Shares(set) => set.check(generation),
                Access::Sealed { kind: SealKind::Shamir, .. } => Err("kind of a seal"),
                Access::Sealed { kek, .. } if kek.key_id.len() > MAX_NAME_LEN => Err("key of a seal"),
                Access::Sealed { kek, .. } if kek.blob.len() > MAX_BLOB_LEN => Err("encrypted KEK"),
                Access::Sealed { .. } => Ok(()),
            },
        }
    }
}

impl SealConfig {
    /// Puts a configuration together and signs it.
    #[must_use]
    pub fn signed(
        vault_id: VaultId,
        root_generation: u32,
        seals: Vec<SealEntry>,
        recovery: Option<ShareSet>,
        created_ms: u64,
        root: &RootKey,
    ) -> Self {
        let root_commitment = root_commitment(root, vault_id, root_generation);
        let mut config =
            Self { vault_id, root_generation, root_commitment, seals, recovery, created_ms, mac: [0; 32] };
        config.mac = config.mac_under(root).finish();
        config
    }

    /// The bytes that are stored and sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bincode::encode_into_std_write(self, &mut bytes, codec()).expect("a Vec takes all bytes");
        bytes
    }

    /// Reads what [`SealConfig::encode`] wrote. What it says is not to be believed before [`SealConfig::verify`].
    ///
    /// # Errors
    /// [`SealConfigError::UnknownVersion`] or [`SealConfigError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SealConfigError> {
        let malformed = |what| SealConfigError::Malformed { what };
        let (version, rest) = bytes.split_first().ok_or(malformed("it is empty"))?;
        if *version != VERSION {
            return Err(SealConfigError::UnknownVersion { version: *version });
        }
        let (config, read) =
            bincode::decode_from_slice::<Self, _>(rest, codec()).map_err(|_| malformed("layout"))?;
        if read != rest.len() {
            return Err(malformed("length"));
        }
        if config.seals.is_empty() || config.seals.len() > MAX_SEALS {
            return Err(malformed("number of seals"));
        }
        for (n, seal) in config.seals.iter().enumerate() {
            seal.check(config.root_generation).map_err(malformed)?;
            if config.seals[..n].iter().any(|earlier| earlier.name == seal.name) {
                return Err(malformed("two seals of one name"));
            }
        }
        let recovery = config.recovery.as_ref().map_or(Ok(()), |set| set.check(config.root_generation));
        recovery.map_err(malformed)?;
        Ok(config)
    }

    /// The seal whose shares people hold, if there is one: of a vault that opens by itself, the one for the day on which
    /// it does not ([`BREAK_GLASS_SEAL`](super::BREAK_GLASS_SEAL)).
    #[must_use]
    pub fn shamir(&self) -> Option<(&SealEntry, &ShareSet)> {
        self.seals.iter().find_map(|seal| match &seal.access {
            Access::Shares(set) => Some((seal, set)),
            Access::Sealed { .. } => None,
        })
    }

    /// The seals that open by themselves.
    pub fn unattended(&self) -> impl Iterator<Item = (&SealEntry, &SealedKek)> {
        self.seals.iter().filter_map(|seal| match &seal.access {
            Access::Shares(_) => None,
            Access::Sealed { kek, .. } => Some((seal, kek)),
        })
    }

    /// Checks the configuration against the root key: first the commitment, then the MAC over every field.
    ///
    /// # Errors
    /// [`SealConfigError::WrongRoot`] or [`SealConfigError::Tampered`].
    pub fn verify(&self, root: &RootKey) -> Result<(), SealConfigError> {
        let commitment = root_commitment(root, self.vault_id, self.root_generation);
        if !bool::from(commitment.ct_eq(&self.root_commitment)) {
            return Err(SealConfigError::WrongRoot);
        }
        if self.mac_under(root).verify(&self.mac) { Ok(()) } else { Err(SealConfigError::Tampered) }
    }

    /// Whether `share` is one of those that were handed out, before enough of them are there to try.
    ///
    /// # Errors
    /// [`ShareRejection`], which says what to do.
    pub fn check_share(&self, share: &Share) -> Result<(), ShareRejection> {
        let is_recovery = || self.check_recovery_share(share).is_ok();
        let Some((_, set)) = self.shamir() else {
            let outdated = |generation: &u32| *generation < self.root_generation && !is_recovery();
            return Err(match share.origin.as_ref().map(|origin| origin.generation).filter(outdated) {
                Some(share_generation) => {
                    ShareRejection::Stale { share_generation, current: self.root_generation }
                }
                None => ShareRejection::NoShamirSeal,
            });
        };
        self.check_in(set, share).map_err(|rejection| match is_recovery() {
            true => ShareRejection::Recovery { x: share.point.x },
            false => rejection,
        })
    }

    /// Whether `share` is one of the recovery shares.
    ///
    /// # Errors
    /// [`ShareRejection`], which says what to do.
    pub fn check_recovery_share(&self, share: &Share) -> Result<(), ShareRejection> {
        self.check_in(self.recovery.as_ref().ok_or(ShareRejection::NoShamirSeal)?, share)
    }

    fn check_in(&self, set: &ShareSet, share: &Share) -> Result<(), ShareRejection> {
        let current = set.generation;
        if let Some(origin) = share.origin {
            if origin.vault_tag != vault_tag(self.vault_id) {
                return Err(ShareRejection::Foreign);
            }
            let share_generation = origin.generation;
            match share_generation.cmp(&current) {
                std::cmp::Ordering::Less => return Err(ShareRejection::Stale { share_generation, current }),
                std::cmp::Ordering::Greater => {
                    return Err(ShareRejection::Newer { share_generation, current });
                }
                std::cmp::Ordering::Equal => {}
            }
        }
        let x = share.point.x;
        match set.knows(self.vault_id, &share.point) {
            true => Ok(()),
            false if share.origin.is_some() => Err(ShareRejection::Mistyped { x }),
            false => Err(ShareRejection::Unrecognised { x }),
        }
    }

    /// Gives back the root key from shares, all of which are used, and checks it and this configuration.
    ///
    /// # Errors
    /// [`OpenError`]; no part of the secrets is in it.
    pub fn unwrap_root(&self, points: &[SharePoint]) -> Result<RootKey, OpenError> {
        let (seal, set) = self.shamir().ok_or(OpenError::NoShamirSeal)?;
        if points.len() < usize::from(set.threshold) {
            return Err(OpenError::NotEnough { given: points.len(), needed: set.threshold });
        }
        let kek = on_wiped_stack(|| combine(points).map(|kek| Kek::from_bytes(&kek)))?;
        let root = seal.wrap.open(self.vault_id, &kek)?;
        self.verify(&root)?;
        Ok(root)
    }

    fn mac_under(&self, root: &RootKey) -> Mac {
        let key = derive::<SealCfg>(root, self.vault_id, self.root_generation);
        let mut mac = Mac::new(key.expose(), MAC_TAG)
            .u8(VERSION)
            .field(&self.vault_id.0)
            .u32(self.root_generation)
            .field(&self.root_commitment)
            .u64(self.created_ms)
            .u32(count(self.seals.len()));
        for seal in &self.seals {
            mac = mac.field(seal.name.as_bytes()).u8(seal.kind().number());
            mac = match &seal.access {
                Access::Shares(set) => set.signed_into(mac),
                Access::Sealed { kek, .. } => mac.field(kek.key_id.as_bytes()).field(&kek.blob),
            };
            mac = mac
                .field(&seal.wrap.wrap_id)
                .field(seal.wrap.seal_name.as_bytes())
                .u32(seal.wrap.root_generation)
                .field(&seal.wrap.salt)
                .field(&seal.wrap.commit)
                .field(&seal.wrap.nonce)
                .field(&seal.wrap.ciphertext);
        }
        match &self.recovery {
            None => mac.u8(0),
            Some(set) => set.signed_into(mac.u8(1)),
        }
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("seals and shares are few")
}

/// Fixed-length integers, so that every byte of an encoding has one place; bounded, for it comes from the network.
fn codec() -> impl bincode::config::Config {
    bincode::config::standard().with_big_endian().with_fixed_int_encoding().with_limit::<MAX_LEN>()
}

fn verifier(salt: &[u8; 32], vault_id: VaultId, generation: u32, point: &SharePoint) -> Mac {
    Mac::new(salt, VERIFIER_TAG).field(&vault_id.0).u32(generation).u8(point.x).field(point.y.expose())
}

#[cfg(test)]
mod tests;
