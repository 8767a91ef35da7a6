//! Seal stanzas as Vault and OpenBao document them, with the environment over them.

use std::fs;
use std::time::Duration;

use super::*;
use crate::seal::SealKind;

const TOP: &str = "storage \"raft\" {\n path = \"data\"\n}\nlistener \"tcp\" {\n tls_disable = 1\n}\n";

fn load_under(text: &str, set: &[(&str, &str)]) -> Result<ServerConfig, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("vault.hcl");
    fs::write(&path, format!("{TOP}{text}")).expect("a file is written");
    let env = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    load_with_env(&[path], env).map_err(|error| error.to_string())
}

fn seals(text: &str, set: &[(&str, &str)]) -> Vec<SealStanza> {
    load_under(text, set).unwrap_or_else(|error| panic!("{error}\n{text}")).seals
}

fn pkcs11(stanza: &SealStanza) -> &Pkcs11Config {
    let SealStanzaKind::Pkcs11(config) = &stanza.kind else { panic!("not PKCS#11: {stanza:?}") };
    config
}

fn pin(config: &Pkcs11Config) -> String {
    config.pin.read().expect("a PIN").expose().to_owned()
}

const FULL: &str = r#"
seal "pkcs11" {
  lib                = "/usr/vault/lib/libCryptoki2_64.so"
  slot               = "2305843009213693953"
  token_label        = "keystead"
  serial             = "0123456789abcdef"
  pin                = "AAAA-BBBB-CCCC-DDDD"
  key_label          = "vault-hsm-key"
  key_id             = "0x01aB"
  mechanism          = "0x1087"
  rsa_oaep_hash      = "sha1"
  hmac_key_label     = "vault-hsm-hmac-key"
  hmac_key_id        = "0x33"
  generate_key       = "true"
  force_rw_session   = "true"
  timeout            = "3s"
  priority           = "2"
  name               = "zone-b"
}
"#;

#[test]
fn every_parameter_of_a_pkcs11_stanza_is_read() {
    let stanza = &seals(FULL, &[])[0];
    assert_eq!((stanza.name.as_str(), stanza.priority, stanza.disabled), ("zone-b", 2, false));
    assert_eq!(stanza.seal_kind(), SealKind::Pkcs11);
    let config = pkcs11(stanza);
    assert_eq!(config.lib.to_str(), Some("/usr/vault/lib/libCryptoki2_64.so"));
    assert_eq!(config.slot, Some(2_305_843_009_213_693_953));
    assert_eq!(config.token_label.as_deref(), Some("keystead"));
    assert_eq!(config.serial.as_deref(), Some("0123456789abcdef"));
    assert_eq!(pin(config), "AAAA-BBBB-CCCC-DDDD");
    assert_eq!(config.key_label, "vault-hsm-key");
    assert_eq!(config.key_id.as_deref(), Some([1, 0xAB].as_slice()));
    assert_eq!((config.mechanism, config.oaep_hash), (Some(WrapMechanism::AesGcm), Some(OaepHash::Sha1)));
    assert_eq!(config.hmac_key_label.as_deref(), Some("vault-hsm-hmac-key"));
    assert_eq!(config.hmac_key_id.as_deref(), Some([0x33].as_slice()));
    assert!(config.generate_key && config.force_rw_session);
    assert_eq!(config.timeout, Duration::from_secs(3));
    assert!(!format!("{stanza:?}").contains("AAAA"));
}

#[test]
fn the_older_hsm_block_and_keys_of_others_are_read_with_a_word_on_what_they_do_not_do() {
    let text = "hsm \"pkcs11\" {\n lib = \"/m.so\"\n slot = \"0\"\n pin = \"1234\"\n key_label = \"k\"\n \
                max_parallel = 5\n default_key_label = \"old\"\n hmac_mechanism = \"0x0251\"\n}\n";
    let config = load_under(text, &[]).expect("loads");
    assert_eq!(pkcs11(&config.seals[0]).slot, Some(0));
    let keys: Vec<_> = config.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(keys, ["max_parallel", "default_key_label", "hmac_mechanism"]);
}

#[test]
fn a_few_parameters_suffice_and_the_label_of_the_key_has_a_default() {
    let text = "seal \"pkcs11\" {\n lib = \"/m.so\"\n token_label = \"t\"\n pin = \"1234\"\n}\n";
    let stanza = &seals(text, &[])[0];
    assert_eq!((stanza.name.as_str(), stanza.priority), ("pkcs11", 1));
    let config = pkcs11(stanza);
    assert_eq!((config.key_label.as_str(), config.mechanism), (DEFAULT_KEY_LABEL, None));
    assert_eq!(config.timeout, DEFAULT_SEAL_TIMEOUT);
}

#[test]
fn the_environment_goes_over_the_file_own_names_first() {
    let set = [
        ("BAO_HSM_PIN", "bao"),
        ("VAULT_HSM_PIN", "vault"),
        ("VAULT_HSM_SLOT", "7"),
        ("KEYSTEAD_HSM_KEY_LABEL", "own"),
        ("VAULT_HSM_KEY_LABEL", "other"),
        ("BAO_HSM_MECHANISM", "CKM_RSA_PKCS_OAEP"),
        ("HSM_PIN", "bare"),
        ("HSM_LIBRARY", "/bare.so"),
    ];
    let config = seals(FULL, &set);
    let config = pkcs11(&config[0]);
    assert_eq!((pin(config).as_str(), config.slot), ("vault", Some(7)));
    assert_eq!(config.key_label, "own");
    assert_eq!(config.mechanism, Some(WrapMechanism::RsaPkcsOaep));
    assert_eq!(config.lib.to_str(), Some("/usr/vault/lib/libCryptoki2_64.so"), "a bare name counts least");
}

#[test]
fn a_stanza_can_be_made_of_the_environment_alone() {
    for kind in ["VAULT_SEAL_TYPE", "BAO_SEAL_TYPE", "KEYSTEAD_SEAL_TYPE", "VAULT_HSM_TYPE", "HSM_TYPE"] {
        let set = [
            (kind, "pkcs11"),
            ("HSM_LIBRARY", "/usr/lib/libpkcs11.so"),
            ("HSM_SLOT", "0"),
            ("HSM_PIN", "your-pin"),
        ];
        let made = seals("", &set);
        let config = pkcs11(&made[0]);
        assert_eq!((config.slot, pin(config).as_str()), (Some(0), "your-pin"), "{kind}");
        let error = load_under("", &set[..3]).expect_err("no PIN");
        assert!(error.contains(kind) && error.contains("needs \"pin\""), "{error}");
    }
    assert!(seals("", &[("HSM_TYPE", "software"), ("HSM_PIN", "x")]).is_empty());
    assert!(seals("", &[("VAULT_SEAL_TYPE", "shamir")]).is_empty());
    let error = load_under("", &[("VAULT_SEAL_TYPE", "transit")]).expect_err("transit");
    assert!(error.starts_with("environment variable VAULT_SEAL_TYPE: "), "{error}");
    let error = load_under(FULL, &[("VAULT_SEAL_TYPE", "shamir")]).expect_err("both");
    assert!(error.contains("take one of them out"), "{error}");
}

#[test]
fn a_pin_may_lie_in_a_file_or_a_variable() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("pin");
    fs::write(&path, "1234\n").expect("written");
    let path = path.display();
    let with = |pin: &str| format!("seal \"pkcs11\" {{\n lib = \"/m.so\"\n slot = 1\n {pin}\n}}\n");
    for line in [format!("pin = \"file://{path}\""), format!("pin_file = \"{path}\"")] {
        assert_eq!(pin(pkcs11(&seals(&with(&line), &[])[0])), "1234", "{line}");
    }
    let named = with("pin = \"env://MY_PIN\"");
    assert_eq!(pin(pkcs11(&seals(&named, &[("MY_PIN", "5678")])[0])), "5678");
    assert!(load_under(&named, &[]).expect_err("unset").starts_with("environment variable MY_PIN: "));
    let both = with(&format!("pin = \"1\"\n pin_file = \"{path}\""));
    assert!(load_under(&both, &[]).expect_err("both").contains("keep one"));
    assert_eq!(pin(pkcs11(&seals(&both, &[("VAULT_HSM_PIN", "9")])[0])), "9");
    let env_file = [("KEYSTEAD_HSM_PIN_FILE", &*path.to_string())];
    assert_eq!(pin(pkcs11(&seals(&with("pin = \"1\""), &env_file)[0])), "1234");
    let gone = seals(&with("pin_file = \"/nonexistent/pin\""), &[]);
    let error = pkcs11(&gone[0]).pin.read().err().expect("no such file");
    assert!(error.contains("/nonexistent/pin"), "{error}");
}

const TWO: &str = r#"
seal "pkcs11" {
  name = "b"
  priority = 2
  lib = "/m.so"
  token_label = "b"
  pin = "env://PIN_B"
}
seal "pkcs11" {
  name = "a"
  lib = "/m.so"
  token_label = "a"
  pin = "1"
}
seal "file" {
  path = "/dev/shm/key"
  priority = 3
}
"#;

#[test]
fn several_seals_are_sorted_by_priority_and_no_variable_is_guessed_to_be_about_one() {
    let set = [("PIN_B", "2")];
    let config = load_under(TWO, &set).expect("loads");
    let names: Vec<_> = config.seals.iter().map(|stanza| stanza.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "file"]);
    assert_eq!(pin(pkcs11(&config.seals[1])), "2");
    assert!(config.warnings[0].text.contains("protects nothing"));
    let error = load_under(TWO, &[set[0], ("VAULT_HSM_PIN", "hunter2")]).expect_err("ambiguous");
    assert!(error.contains("VAULT_HSM_PIN") && !error.contains("hunter2"), "{error}");
    // One that is migrated away from keeps its own values.
    let disabled = TWO.replace("name = \"b\"", "name = \"b\"\n  disabled = true");
    let config = seals(&disabled, &[set[0], ("VAULT_HSM_PIN", "9")]);
    assert_eq!((pin(pkcs11(&config[0])).as_str(), pin(pkcs11(&config[1])).as_str()), ("9", "2"));
    assert!(config[1].disabled);
}

#[test]
fn bad_stanzas_are_refused_with_a_remedy_and_without_their_pin() {
    let with = |line: &str| {
        format!(
            "seal \"pkcs11\" {{\n lib = \"/m.so\"\n token_label = \"t\"\n pin = \"hunter2\"\n {line}\n}}\n"
        )
    };
    for (text, phrase) in [
        (with("tokenlabel = \"x\""), "did you mean \"token_label\"?"),
        (with("slot = \"one\""), "whole number"),
        (with("key_id = \"xyz\""), "hexadecimal"),
        (with("mechanism = \"0x1085\""), "CKM_AES_GCM"),
        (with("mechanism = \"CKM_DES3_CBC\""), "unknown mechanism"),
        (with("rsa_oaep_hash = \"md5\""), "sha256"),
        (with("timeout = \"1ms\""), "100ms"),
        (with("priority = 0"), "1 or greater"),
        (with("name = \"a b\""), "letters"),
        (with("name = \"recovery\""), "names shares"),
        (with("disabled = \"maybe\""), "true or false"),
        (format!("{}{}", with(""), with("")), "a second seal is called \"pkcs11\""),
        ("seal \"pkcs11\" { lib = \"/m.so\" }\n".to_owned(), "needs \"token_label\""),
        ("seal \"pkcs11\" { slot = 1 }\n".to_owned(), "needs \"lib\""),
        ("seal \"pkcs11\" {\n lib = \"/m.so\"\n slot = 1\n}\n".to_owned(), "needs \"pin\""),
        ("seal \"file\" {}\n".to_owned(), "needs \"path\""),
        ("seal \"awskms\" { kms_key_id = \"x\" }\n".to_owned(), "not built yet"),
        ("seal \"shamir\" { path = \"x\" }\n".to_owned(), "unknown key"),
    ] {
        let error = load_under(&text, &[]).expect_err(&text);
        assert!(error.contains(phrase), "{error:?} lacks {phrase:?}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = load_under(&with(""), &[("VAULT_HSM_SLOT", "x")]).expect_err("a bad slot");
    assert!(error.starts_with("environment variable VAULT_HSM_SLOT: "), "{error}");
}

#[test]
fn mechanisms_are_read_by_number_and_name() {
    for (text, expected) in [
        ("0x1087", WrapMechanism::AesGcm),
        ("4231", WrapMechanism::AesGcm),
        ("aes_gcm", WrapMechanism::AesGcm),
        ("CKM_AES_KEY_WRAP_PAD", WrapMechanism::AesKeyWrapPad),
        ("0x210a", WrapMechanism::AesKeyWrapPad),
        ("9", WrapMechanism::RsaPkcsOaep),
        ("0x0009", WrapMechanism::RsaPkcsOaep),
    ] {
        assert_eq!(WrapMechanism::parse(text), Ok(expected), "{text}");
    }
}
