//! Fuzz targets for what key holders type in, and for the configuration that a node believes before it is opened.

use keystead_fuzz::{Bounds, check};

use super::{
    auto::SealedKek,
    config::{Access, SealConfig, SealEntry, SealKind, ShareSet},
    shamir::SharePoint,
    share::Share,
    wrap::Wrap,
};
use crate::{
    barrier::VaultId,
    secret::{Kek, RootKey, ShareBytes},
};

const VAULT: VaultId = VaultId([7; 16]);
/// Shares are short, and texts are decoded into one buffer.
const SHARE_BOUNDS: Bounds = Bounds { base_bytes: 64 << 10, bytes_per_byte: 8 };
/// bincode's own limit is 256 KiB.
const CONFIG_BOUNDS: Bounds = Bounds { base_bytes: 1 << 20, bytes_per_byte: 8 };

fn share(x: u8) -> Share {
    Share::new(VAULT, 3, SharePoint { x, y: ShareBytes::from_bytes(&[0xD5; 32]) })
}

#[test]
fn fuzz_shares() {
    let bare = Share { origin: None, ..share(2) };
    let samples = vec![
        share(1).to_hex().expose().as_bytes().to_vec(),
        share(255).to_base64().expose().as_bytes().to_vec(),
        bare.to_hex().expose().as_bytes().to_vec(),
        bare.to_base64().expose().as_bytes().to_vec(),
        share(9).encode().to_vec(),
        bare.encode().to_vec(),
    ];
    check!(samples, SHARE_BOUNDS, |input: &[u8]| {
        if let Ok(share) = Share::decode(input) {
            assert!(matches!(input.len(), 33 | 48) && share.point.x != 0);
            assert_eq!(*share.encode(), input, "a share has one encoding");
        }
        let Ok(text) = std::str::from_utf8(input) else { return };
        match Share::parse(text) {
            Ok(share) => {
                for again in [share.to_hex(), share.to_base64()] {
                    let again = Share::parse(again.expose()).expect("our own");
                    assert_eq!(*again.encode(), *share.encode());
                    assert_eq!(again.origin, share.origin);
                }
            }
            Err(error) => {
                // None of the messages has a word of twelve letters.
                let shown = error.to_string();
                let word = |part: &&[u8]| !part.iter().any(u8::is_ascii_whitespace);
                let mut parts = text.as_bytes().windows(12).take(200).filter(word);
                assert!(!parts.any(|part| shown.as_bytes().windows(12).any(|own| own == part)), "{shown}");
            }
        }
    });
}

fn config() -> SealConfig {
    let root = RootKey::from_bytes(&[0x11; 32]);
    let points: Vec<SharePoint> =
        (1..=5).map(|x| SharePoint { x, y: ShareBytes::from_bytes(&[x; 32]) }).collect();
    let entry = SealEntry {
        name: "shamir".to_owned(),
        access: Access::Shares(ShareSet::of([4; 32], VAULT, 3, &points, 3)),
        wrap: Wrap::seal(VAULT, "shamir", 3, &Kek::from_bytes(&[0x22; 32]), &root),
    };
    let kek = SealedKek { key_id: "key".to_owned(), blob: vec![8; 61] };
    let token = SealEntry {
        name: "token".to_owned(),
        access: Access::Sealed { kind: SealKind::Pkcs11, kek },
        wrap: Wrap::seal(VAULT, "token", 3, &Kek::from_bytes(&[0x33; 32]), &root),
    };
    let recovery = ShareSet::of([5; 32], VAULT, 3, &points[..2], 2);
    SealConfig::signed(VAULT, 3, vec![entry, token], Some(recovery), 17, &root)
}

#[test]
fn fuzz_seal_config() {
    let root = RootKey::from_bytes(&[0x11; 32]);
    let (good, typed) = (config(), share(2));
    check!(vec![good.encode()], CONFIG_BOUNDS, |input: &[u8]| {
        let Ok(config) = SealConfig::decode(input) else { return };
        assert_eq!(config.encode(), input, "a configuration has one encoding");
        for set in config.shamir().map(|(_, set)| set).into_iter().chain(&config.recovery) {
            assert!((1..=set.shares).contains(&set.threshold));
        }
        // Nothing but what was signed is borne out by the root key.
        assert_eq!(config.verify(&root).is_ok(), config == good);
        drop(config.check_share(&typed));
        drop(config.unwrap_root(&[SharePoint { x: 1, y: ShareBytes::from_bytes(&[1; 32]) }]));
    });
}
