//! Tests of the seal configuration; apart, because they outgrow it.

use super::*;
use crate::seal::init::{InitOutput, InitParams, init, reseal};
use crate::secret::ShareBytes;

const PARAMS: InitParams = InitParams { shares: 5, threshold: 3, now_ms: 1_700_000_000_000 };

fn made() -> InitOutput {
    init(&PARAMS).unwrap()
}

fn points(shares: &[Share]) -> Vec<SharePoint> {
    shares.iter().map(|share| SharePoint { x: share.point.x, y: share.point.y.duplicate() }).collect()
}

/// The shares of an entry.
fn set(seal: &mut SealEntry) -> &mut ShareSet {
    match &mut seal.access {
        Access::Shares(set) => set,
        Access::Sealed { .. } => panic!("{} takes no shares", seal.name),
    }
}

/// A configuration without anything random in it.
fn fixed() -> (SealConfig, RootKey) {
    let (vault_id, root) = (VaultId([7; 16]), RootKey::from_bytes(&[0x11; 32]));
    let point = SharePoint { x: 1, y: ShareBytes::from_bytes(&[0x22; 32]) };
    let wrap = Wrap {
        wrap_id: [1; 16],
        seal_name: "shamir".to_owned(),
        root_generation: 4,
        salt: [2; 32],
        commit: [3; 32],
        nonce: [4; 12],
        ciphertext: [5; 48],
    };
    let seal = SealEntry {
        name: "shamir".to_owned(),
        access: Access::Shares(ShareSet::of([6; 32], vault_id, 4, &[point], 1)),
        wrap,
    };
    (SealConfig::signed(vault_id, 4, vec![seal], None, 0x0102_0304, &root), root)
}

#[test]
fn formats_are_the_written_ones() {
    let (config, _) = fixed();
    assert_eq!(
        hex::encode(config.root_commitment),
        "29610e381f14677556307c1539b06fab2405d185a87c70d0f39a2bf99d3bc0cc"
    );
    assert_eq!(
        hex::encode(config.shamir().unwrap().1.verifiers[0].tag),
        "1f4d57d658c0e28646b637c76c3ed8b8f6e1ec1d1d0d43caae700ae3a93c7c12"
    );
    assert_eq!(hex::encode(config.mac), "d21a8a5b767cf18e73eb2f65d37f0b0546a51a7ce999aab7d0a84b46c460d270");
    let expected = [
        "03",
        &"07".repeat(16),
        "00000004",
        &hex::encode(config.root_commitment),
        "0000000000000001",
        "0000000000000006",
        &hex::encode("shamir"),
        "00000000", // shares, as the codec numbers it
        "00000004",
        "0101",
        &"06".repeat(32),
        "0000000000000001",
        "01",
        &hex::encode(config.shamir().unwrap().1.verifiers[0].tag),
        &"01".repeat(16),
        "0000000000000006",
        &hex::encode("shamir"),
        "00000004",
        &"02".repeat(32),
        &"03".repeat(32),
        &"04".repeat(12),
        &"05".repeat(48),
        "00", // no recovery shares
        "0000000001020304",
        &hex::encode(config.mac),
    ]
    .concat();
    assert_eq!(hex::encode(config.encode()), expected);
}

#[test]
fn encoding_survives_and_still_verifies() {
    let InitOutput { seal_config, root_key, .. } = made();
    let decoded = SealConfig::decode(&seal_config.encode()).unwrap();
    assert_eq!(decoded, seal_config);
    assert_eq!(decoded.verify(&root_key), Ok(()));
    assert_eq!(decoded.verify(&RootKey::random()), Err(SealConfigError::WrongRoot));
}

#[test]
fn no_changed_or_missing_byte_passes() {
    let (config, root) = fixed();
    let bytes = config.encode();
    let accepted = |bytes: &[u8]| SealConfig::decode(bytes).and_then(|config| config.verify(&root));
    assert_eq!(accepted(&bytes), Ok(()));
    for n in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[n] ^= 1 << bit;
            assert!(accepted(&changed).is_err(), "byte {n}, bit {bit}");
        }
        assert!(accepted(&bytes[..n]).is_err(), "cut at {n}");
    }
    assert!(accepted(&[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn every_field_is_under_the_mac() {
    let (config, root) = fixed();
    let seal_changes: [fn(&mut SealEntry); 13] = [
        |seal| seal.name.push('x'),
        |seal| set(seal).generation -= 1,
        |seal| set(seal).shares += 1,
        |seal| set(seal).threshold += 1,
        |seal| set(seal).verifier_salt[0] ^= 1,
        |seal| set(seal).verifiers[0].x += 1,
        |seal| set(seal).verifiers[0].tag[0] ^= 1,
        |seal| set(seal).verifiers.clear(),
        |seal| seal.wrap.wrap_id[0] ^= 1,
        |seal| seal.wrap.seal_name.push('x'),
        |seal| seal.wrap.root_generation += 1,
        |seal| seal.wrap.commit[0] ^= 1,
        |seal| seal.wrap.ciphertext[0] ^= 1,
    ];
    for (n, change) in seal_changes.iter().enumerate() {
        let mut changed = config.clone();
        change(&mut changed.seals[0]);
        assert_eq!(changed.verify(&root), Err(SealConfigError::Tampered), "change {n}");
    }
    let mut added = config.clone();
    added.seals.push(config.seals[0].clone());
    assert_eq!(added.verify(&root), Err(SealConfigError::Tampered));
    let later = SealConfig { created_ms: config.created_ms + 1, ..config.clone() };
    assert_eq!(later.verify(&root), Err(SealConfigError::Tampered));
    let generation = SealConfig { root_generation: 5, ..config.clone() };
    assert_eq!(generation.verify(&root), Err(SealConfigError::WrongRoot));
    let vault = SealConfig { vault_id: VaultId([8; 16]), ..config };
    assert_eq!(vault.verify(&root), Err(SealConfigError::WrongRoot));
}

/// A configuration with a seal that opens by itself, and recovery shares.
fn unattended() -> (SealConfig, RootKey) {
    let (config, root) = fixed();
    let mut seal = config.seals[0].clone();
    let recovery = Some(set(&mut seal).clone());
    let kek = SealedKek { key_id: "key".to_owned(), blob: vec![9; 40] };
    seal.access = Access::Sealed { kind: SealKind::Pkcs11, kek };
    (SealConfig::signed(config.vault_id, 4, vec![seal], recovery, config.created_ms, &root), root)
}

#[test]
fn every_field_of_a_seal_that_opens_by_itself_and_of_recovery_is_under_the_mac() {
    fn kek(config: &mut SealConfig) -> &mut SealedKek {
        match &mut config.seals[0].access {
            Access::Sealed { kek, .. } => kek,
            Access::Shares(_) => panic!("it takes shares"),
        }
    }
    let (config, root) = unattended();
    assert_eq!(config.verify(&root), Ok(()));
    assert_eq!(SealConfig::decode(&config.encode()).as_ref(), Ok(&config));
    let changes: [fn(&mut SealConfig); 8] = [
        |config| kek(config).key_id.push('x'),
        |config| kek(config).blob[0] ^= 1,
        |config| kek(config).blob.push(0),
        |config| {
            let kek = kek(config).clone();
            config.seals[0].access = Access::Sealed { kind: SealKind::File, kek };
        },
        |config| config.seals[0].access = Access::Shares(config.recovery.clone().unwrap()),
        |config| config.recovery = None,
        |config| config.recovery.as_mut().unwrap().threshold += 1,
        |config| config.recovery.as_mut().unwrap().verifiers[0].tag[0] ^= 1,
    ];
    for (n, change) in changes.iter().enumerate() {
        let mut changed = config.clone();
        change(&mut changed);
        assert_eq!(changed.verify(&root), Err(SealConfigError::Tampered), "change {n}");
    }
}

#[test]
fn what_cannot_have_been_written_is_malformed() {
    let (config, _) = fixed();
    let what = |change: fn(&mut SealConfig)| {
        let mut changed = config.clone();
        change(&mut changed);
        match SealConfig::decode(&changed.encode()) {
            Err(SealConfigError::Malformed { what }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(what(|config| config.seals.clear()), "number of seals");
    assert_eq!(what(|config| config.seals.push(config.seals[0].clone())), "two seals of one name");
    assert_eq!(what(|config| set(&mut config.seals[0]).threshold = 2), "shares and threshold");
    assert_eq!(what(|config| set(&mut config.seals[0]).threshold = 0), "shares and threshold");
    assert_eq!(what(|config| set(&mut config.seals[0]).shares = 2), "verifiers");
    assert_eq!(what(|config| set(&mut config.seals[0]).generation = 5), "root generation of shares");
    assert_eq!(what(|config| set(&mut config.seals[0]).verifiers[0].x = 0), "verifiers");
    assert_eq!(what(|config| config.seals[0].wrap.seal_name.clear()), "seal name in a wrap");
    assert_eq!(what(|config| config.seals[0].wrap.root_generation = 5), "root generation in a wrap");
    assert_eq!(what(|config| config.seals[0].name.clear()), "name of a seal");
    let what_of = |change: fn(&mut SealedKek, &mut SealKind)| {
        let (mut changed, _) = unattended();
        if let Access::Sealed { kek, kind } = &mut changed.seals[0].access {
            change(kek, kind);
        }
        SealConfig::decode(&changed.encode())
    };
    let malformed = |what| Err(SealConfigError::Malformed { what });
    assert_eq!(what_of(|kek, _| kek.blob = vec![0; MAX_BLOB_LEN + 1]), malformed("encrypted KEK"));
    assert_eq!(what_of(|kek, _| kek.key_id = "x".repeat(MAX_NAME_LEN + 1)), malformed("key of a seal"));
    assert_eq!(what_of(|_, kind| *kind = SealKind::Shamir), malformed("kind of a seal"));
    let (mut recovery, _) = unattended();
    recovery.recovery.as_mut().unwrap().threshold = 2;
    assert_eq!(SealConfig::decode(&recovery.encode()), malformed("shares and threshold"));
    let mut newer = config.encode();
    newer[0] = VERSION + 1;
    assert_eq!(SealConfig::decode(&newer), Err(SealConfigError::UnknownVersion { version: VERSION + 1 }));
    assert!(SealConfig::decode(&[]).is_err());
    assert!(SealConfig::decode(&[&[VERSION][..], &[0xFF; 4000]].concat()).is_err());
}

#[test]
fn share_of_another_vault_is_foreign() {
    let (here, there) = (made(), made());
    assert_eq!(here.seal_config.check_share(&there.shares[0]), Err(ShareRejection::Foreign));
}

#[test]
fn share_of_another_generation_is_stale_or_newer() {
    let first = made();
    let vault_id = first.seal_config.vault_id;
    let (second, shares) = reseal(vault_id, 2, &RootKey::random(), &PARAMS).unwrap();
    assert_eq!(
        second.check_share(&first.shares[0]),
        Err(ShareRejection::Stale { share_generation: 1, current: 2 })
    );
    assert_eq!(
        first.seal_config.check_share(&shares[0]),
        Err(ShareRejection::Newer { share_generation: 2, current: 1 })
    );
    assert_eq!(second.check_share(&shares[0]), Ok(()));
}

#[test]
fn wrong_y_or_number_is_mistyped_and_of_a_bare_share_unrecognised() {
    let made = made();
    let [one, two, ..] = &made.shares[..] else { panic!("five shares were made") };
    let full = |x, y: &ShareBytes| Share { origin: one.origin, point: SharePoint { x, y: y.duplicate() } };
    let bare = |x, y| Share { origin: None, ..full(x, y) };
    let check = |share: Share| made.seal_config.check_share(&share);
    let (y1, y2) = (&one.point.y, &two.point.y);
    assert_eq!(check(full(1, y1)), Ok(()));
    assert_eq!(check(bare(1, y1)), Ok(()));
    assert_eq!(check(full(1, y2)), Err(ShareRejection::Mistyped { x: 1 }));
    assert_eq!(check(full(6, y1)), Err(ShareRejection::Mistyped { x: 6 }));
    assert_eq!(check(bare(1, y2)), Err(ShareRejection::Unrecognised { x: 1 }));
    assert_eq!(check(bare(9, y1)), Err(ShareRejection::Unrecognised { x: 9 }));
    for bit in 0..256 {
        let y = ShareBytes::filled(|y| {
            y.copy_from_slice(y1.expose());
            y[bit / 8] ^= 1 << (bit % 8);
        });
        assert_eq!(check(full(1, &y)), Err(ShareRejection::Mistyped { x: 1 }), "bit {bit}");
    }
}

#[test]
fn stale_bare_share_is_unrecognised() {
    let first = made();
    let (second, _) = reseal(first.seal_config.vault_id, 2, &first.root_key, &PARAMS).unwrap();
    let Share { point, .. } = first.shares.into_iter().next().unwrap();
    let bare = Share { origin: None, point };
    assert_eq!(second.check_share(&bare), Err(ShareRejection::Unrecognised { x: 1 }));
}

#[test]
fn too_few_repeated_and_wrong_shares_do_not_open() {
    let made = made();
    let open = |points: &[SharePoint]| made.seal_config.unwrap_root(points).err().unwrap();
    assert_eq!(open(&[]), OpenError::NotEnough { given: 0, needed: 3 });
    assert_eq!(open(&points(&made.shares[..2])), OpenError::NotEnough { given: 2, needed: 3 });
    let mut repeated = points(&made.shares[..3]);
    repeated[2].x = 1;
    assert_eq!(open(&repeated), OpenError::Combine(CombineError::RepeatedX { x: 1 }));
    repeated[2].x = 0;
    assert_eq!(open(&repeated), OpenError::Combine(CombineError::ZeroX));
    let mut wrong = points(&made.shares[..3]);
    wrong[1].y = ShareBytes::random();
    assert_eq!(open(&wrong), OpenError::Wrap(WrapError::WrongKey));
    assert!(made.seal_config.unwrap_root(&points(&made.shares)).is_ok(), "more than enough are as good");
}

#[test]
fn case_27_wrap_of_another_root_or_a_changed_configuration_does_not_open() {
    let made = made();
    let enough = points(&made.shares[..3]);
    let kek = Kek::from_bytes(&combine(&enough).unwrap());
    let vault_id = made.seal_config.vault_id;

    let mut other_root = made.seal_config.clone();
    other_root.seals[0].wrap = Wrap::seal(vault_id, "shamir", 1, &kek, &RootKey::random());
    let refused = other_root.unwrap_root(&enough).err().unwrap();
    assert_eq!(refused, OpenError::Config(SealConfigError::WrongRoot));

    let mut other_wrap = made.seal_config.clone();
    other_wrap.seals[0].wrap = Wrap::seal(vault_id, "shamir", 1, &kek, &made.root_key);
    let refused = other_wrap.unwrap_root(&enough).err().unwrap();
    assert_eq!(refused, OpenError::Config(SealConfigError::Tampered));

    let mut fewer = made.seal_config.clone();
    set(&mut fewer.seals[0]).threshold = 2;
    let refused = fewer.unwrap_root(&enough).err().unwrap();
    assert_eq!(refused, OpenError::Config(SealConfigError::Tampered));
}

#[test]
fn case_27_old_shares_do_not_open_a_new_generation_nor_an_old_wrap_put_back() {
    let first = made();
    let (second, shares) = reseal(first.seal_config.vault_id, 2, &RootKey::random(), &PARAMS).unwrap();
    let old = points(&first.shares[..3]);
    assert_eq!(second.unwrap_root(&old).err().unwrap(), OpenError::Wrap(WrapError::WrongKey));
    let mut rolled_back = second;
    rolled_back.seals[0].wrap = first.seal_config.seals[0].wrap.clone();
    let refused = rolled_back.unwrap_root(&old).err().unwrap();
    assert_eq!(refused, OpenError::Config(SealConfigError::WrongRoot));
    let refused = rolled_back.unwrap_root(&points(&shares[..3])).err().unwrap();
    assert_eq!(refused, OpenError::Wrap(WrapError::WrongKey));
}
