//! The PKCS#11 seal on real SoftHSM tokens: what it wraps, and every way in which a token or its module fails.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a panic is the report, and what is skipped is said

mod stage;

use std::fs;
use std::time::{Duration, Instant};

use keystead::config::{OaepHash, PinSource, WrapMechanism};
use keystead::seal::{AutoSeal, SealFault, SealedKek};
use keystead::secret::{Kek, SecretString};
use stage::Stage;

const ALL: [WrapMechanism; 3] =
    [WrapMechanism::AesGcm, WrapMechanism::AesKeyWrapPad, WrapMechanism::RsaPkcsOaep];

fn pin(text: &str) -> PinSource {
    PinSource::Text(SecretString::new(text.to_owned()))
}

async fn wrapped(seal: &dyn AutoSeal, kek: &Kek) -> SealedKek {
    seal.prepare().await.unwrap();
    seal.encrypt(kek, b"aad").await.unwrap()
}

async fn opens(seal: &dyn AutoSeal, sealed: &SealedKek, kek: &Kek) -> bool {
    seal.decrypt(sealed, b"aad").await.is_ok_and(|opened| opened.ct_eq(kek))
}

async fn fault(seal: &dyn AutoSeal, sealed: &SealedKek) -> SealFault {
    seal.decrypt(sealed, b"aad").await.err().expect("it opened")
}

fn unavailable(fault: &SealFault) -> &str {
    let SealFault::Unavailable(text) = fault else { panic!("not unavailable: {fault:?}") };
    text
}

fn needs_operator(fault: &SealFault) -> &str {
    let SealFault::NeedsOperator(text) = fault else { panic!("needs no operator: {fault:?}") };
    text
}

fn not_ours(fault: &SealFault) -> &str {
    let SealFault::NotOurs(text) = fault else { panic!("ours: {fault:?}") };
    text
}

#[tokio::test]
async fn every_mechanism_opens_what_it_wrapped_after_a_restart_and_nothing_that_was_altered() {
    let Some(stage) = Stage::new() else { return };
    for mechanism in ALL {
        let kek = Kek::random();
        let seal = stage.seal_by(mechanism);
        // Each its own keys: AES keys of one label would serve two mechanisms.
        let seal = match mechanism {
            WrapMechanism::AesKeyWrapPad => stage.seal(|config| {
                config.mechanism = Some(mechanism);
                config.key_label = "kwp".to_owned();
            }),
            _ => seal,
        };
        let sealed = wrapped(&seal, &kek).await;
        let report = seal.report().await.unwrap();
        assert_eq!(report.key_id, sealed.key_id);
        assert!(report.description.contains(mechanism.name()), "{}", report.description);
        drop(seal);
        let label = if mechanism == WrapMechanism::AesKeyWrapPad { "kwp" } else { "keystead" };
        let restarted = stage.seal(|config| {
            config.mechanism = Some(mechanism);
            config.key_label = label.to_owned();
        });
        assert!(opens(&restarted, &sealed, &kek).await, "{mechanism:?}");
        let other = restarted.decrypt(&sealed, b"other").await.err().expect("other fields");
        not_ours(&other);
        for at in [0, sealed.blob.len() / 2, sealed.blob.len() - 1] {
            let mut altered = sealed.clone();
            altered.blob[at] ^= 1;
            not_ours(&fault(&restarted, &altered).await);
        }
        assert!(opens(&restarted, &sealed, &kek).await, "{mechanism:?} after altered ones");
    }
}

#[tokio::test]
async fn a_token_that_draws_its_own_iv_opens_what_it_wrapped_and_a_fixed_iv_is_refused() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    let seal = stage.seal_by(WrapMechanism::AesGcm);
    seal.prepare().await.unwrap();
    let kek = Kek::random();
    let mut blobs = Vec::new();
    for how in ["overwrite", "overwrite", "draw", "draw"] {
        stage.order(&format!("C_EncryptInit iv {how}\n"));
        let sealed = seal.encrypt(&kek, b"aad").await.unwrap();
        stage.order("");
        assert!(opens(&seal, &sealed, &kek).await, "{how}");
        assert!(!blobs.contains(&sealed.blob), "{how}: the same IV twice");
        blobs.push(sealed.blob);
    }
    stage.order("C_EncryptInit iv zeros\n");
    let refused = seal.encrypt(&kek, b"aad").await.expect_err("a fixed IV");
    assert!(needs_operator(&refused).contains("CKM_AES_KEY_WRAP_PAD"), "{refused}");
}

#[tokio::test]
async fn a_wrap_made_with_the_public_key_alone_is_refused() {
    let Some(stage) = Stage::new() else { return };
    let seal = stage.seal_by(WrapMechanism::RsaPkcsOaep);
    let kek = Kek::random();
    let sealed = wrapped(&seal, &kek).await;
    // The ciphertext is as good as it can be; only the token could have made the last 32 bytes.
    let mut forged = sealed.clone();
    let at = forged.blob.len() - 32;
    forged.blob[at..].fill(0);
    let text = fault(&seal, &forged).await;
    assert!(not_ours(&text).contains("MAC"), "{text}");
    // A key without one beside it is refused, not used.
    let without = stage.seal(|config| {
        config.mechanism = Some(WrapMechanism::RsaPkcsOaep);
        config.hmac_key_label = Some("none".to_owned());
    });
    let refused = without.encrypt(&kek, b"aad").await.expect_err("no MAC key");
    assert!(needs_operator(&refused).contains("hmac_key_label"), "{refused}");
    let strict = stage.seal(|config| {
        config.mechanism = Some(WrapMechanism::RsaPkcsOaep);
        config.oaep_hash = Some(OaepHash::Sha256);
    });
    let refused = strict.encrypt(&kek, b"aad").await.expect_err("SoftHSM knows SHA-1 only");
    assert!(needs_operator(&refused).contains("rsa_oaep_hash"), "{refused}");
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_however_often_the_node_restarts() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    for start in 0..5 {
        let seal = stage.seal(|config| config.pin = pin("9999"));
        let refused = seal.report().await.expect_err("a wrong PIN");
        assert!(needs_operator(&refused).contains("refused-pin-hsm"), "{refused}");
        assert!(!refused.to_string().contains("9999"), "{refused}");
        assert_eq!(stage.logins(), 1, "start {start}");
        seal.report().await.expect_err("still");
        assert_eq!(stage.logins(), 1, "start {start}");
    }
    // Nothing on the disk could tell another PIN from that one, so somebody has to ask for it.
    let corrected = stage.seal(|_| ());
    let untried = corrected.report().await.expect_err("none is tried unasked");
    assert!(needs_operator(&untried).contains("-retry-pin"), "{untried}");
    assert_eq!(stage.logins(), 1);
    corrected.forget_refused_pin().unwrap();
    corrected.random(8).await.unwrap();
    assert_eq!(stage.logins(), 2);
    assert!(!stage.path("data/refused-pin-hsm").exists());
    let seal = stage.seal(|config| config.pin = pin("9999"));
    seal.report().await.expect_err("a wrong PIN");
    seal.forget_refused_pin().unwrap();
    seal.report().await.expect_err("a wrong PIN");
    assert_eq!(stage.logins(), 4, "tried again when somebody wants it");
    seal.forget_refused_pin().unwrap();
    // A node that runs reads the file with the PIN again, and knows the corrected one for another.
    fs::write(stage.path("pin"), "9999").unwrap();
    let seal = stage.seal(|config| config.pin = PinSource::File(stage.path("pin")));
    for _ in 0..3 {
        seal.report().await.expect_err("a wrong PIN");
    }
    assert_eq!(stage.logins(), 5);
    fs::write(stage.path("pin"), stage::PIN).unwrap();
    seal.random(8).await.unwrap();
    assert!(!stage.path("data/refused-pin-hsm").exists());
}

#[tokio::test]
async fn no_login_is_tried_on_a_token_that_is_locked_or_about_to_be() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    for (flags, phrase) in [("0x40000", "is locked"), ("0x20000", "one more wrong PIN locks")] {
        stage.order(&format!("C_GetTokenInfo flags {flags}\n"));
        let refused = stage.seal(|_| ()).report().await.expect_err("flags");
        assert!(needs_operator(&refused).contains(phrase), "{refused}");
    }
    assert_eq!(stage.logins(), 0);
    stage.order("C_Login err 0xA4\n");
    let refused = stage.seal(|_| ()).report().await.expect_err("locked");
    assert!(needs_operator(&refused).contains("locked"), "{refused}");
    stage.order("");
    let again = stage.seal(|_| ()).report().await.expect_err("the PIN is not tried again");
    assert!(needs_operator(&again).contains("none is tried again unasked"), "{again}");
    assert_eq!(stage.logins(), 1);
}

#[tokio::test]
async fn a_module_that_is_none_and_a_token_that_is_not_there_are_told_apart() {
    let Some(stage) = Stage::new() else { return };
    let missing = stage.seal(|config| config.lib = "/nonexistent/module.so".into());
    let error = missing.report().await.expect_err("no module");
    assert!(needs_operator(&error).contains("/nonexistent/module.so"), "{error}");
    let wrong = stage.seal(|config| config.lib = libz());
    let error = wrong.report().await.expect_err("no PKCS#11 module");
    assert!(needs_operator(&error).contains("no PKCS#11 module"), "{error}");
    let elsewhere = stage.seal(|config| config.token_label = Some("zone-b".to_owned()));
    let error = elsewhere.report().await.expect_err("no token");
    assert!(unavailable(&error).contains("zone-b") && unavailable(&error).contains("zone-a"), "{error}");
    let serial = stage.token("zone-a");
    let error = stage.seal(|_| ()).report().await.expect_err("two tokens");
    assert!(needs_operator(&error).contains(&serial), "{error}");
    let named = stage.seal(|config| config.serial = Some(serial));
    named.prepare().await.unwrap();
    named.report().await.unwrap();
}

/// A library of the system that is no PKCS#11 module.
fn libz() -> std::path::PathBuf {
    let places = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
    places.into_iter().find(|path| fs::exists(path).unwrap()).expect("a C library").into()
}

#[tokio::test]
async fn a_token_that_is_gone_and_back_opens_without_a_restart_of_the_node() {
    let Some(stage) = Stage::new() else { return };
    let seal = stage.seal(|_| ());
    let kek = Kek::random();
    let sealed = wrapped(&seal, &kek).await;
    fs::rename(stage.path("tokens"), stage.path("away")).unwrap();
    fs::create_dir(stage.path("tokens")).unwrap();
    unavailable(&fault(&seal, &sealed).await);
    // At start, too.
    unavailable(&fault(&stage.seal(|_| ()), &sealed).await);
    fs::remove_dir(stage.path("tokens")).unwrap();
    fs::rename(stage.path("away"), stage.path("tokens")).unwrap();
    assert!(opens(&seal, &sealed, &kek).await);
}

#[tokio::test]
async fn one_of_two_tokens_is_gone_and_the_other_serves() {
    let Some(stage) = Stage::new() else { return };
    let first = stage.token_directories().remove(0);
    let serial = stage.token("zone-b");
    let seal = stage.seal(|config| config.token_label = Some("zone-b".to_owned()));
    let kek = Kek::random();
    let sealed = wrapped(&seal, &kek).await;
    fs::rename(&first, stage.path("away")).unwrap();
    assert!(opens(&seal, &sealed, &kek).await);
    let restarted = stage.seal(|config| {
        config.token_label = None;
        config.serial = Some(serial);
    });
    assert!(opens(&restarted, &sealed, &kek).await);
    let lost = stage.seal(|_| ()).report().await.expect_err("it is gone");
    unavailable(&lost);
}

#[tokio::test]
async fn a_deleted_key_and_a_wrap_of_another_token_are_told_apart() {
    let Some(stage) = Stage::new() else { return };
    let seal = stage.seal(|_| ());
    let kek = Kek::random();
    let sealed = wrapped(&seal, &kek).await;
    let serial = stage.token("zone-b");
    let other = stage.seal(|config| {
        config.token_label = None;
        config.serial = Some(serial);
    });
    wrapped(&other, &kek).await;
    let text = fault(&other, &sealed).await;
    assert!(not_ours(&text).contains("another token"), "{text}");
    drop(seal);
    for path in stage.key_files() {
        fs::remove_file(path).unwrap();
    }
    let text = fault(&stage.seal(|_| ()), &sealed).await;
    assert!(needs_operator(&text).contains("keystead hsm init"), "{text}");
}

#[tokio::test]
async fn a_token_that_was_initialised_anew_lacks_its_key_and_says_what_helps() {
    let Some(stage) = Stage::new() else { return };
    let seal = stage.seal(|config| config.generate_key = false);
    let kek = Kek::random();
    let sealed = wrapped(&stage.seal(|_| ()), &kek).await;
    assert!(opens(&seal, &sealed, &kek).await);
    stage.initialise_anew("zone-a");
    // One that had it open, and one that starts.
    for seal in [seal, stage.seal(|_| ())] {
        let text = fault(&seal, &sealed).await;
        assert!(needs_operator(&text).contains("keystead hsm init"), "{text}");
        let text = seal.encrypt(&kek, b"aad").await.expect_err("no key");
        assert!(needs_operator(&text).contains("it was deleted, or never made"), "{text}");
    }
    // With a key of its own again it works, and does not open what the former one wrapped.
    let seal = stage.seal(|_| ());
    let again = wrapped(&seal, &kek).await;
    assert!(opens(&seal, &again, &kek).await);
    let text = fault(&seal, &sealed).await;
    assert!(not_ours(&text).contains("it was deleted, or another token wrapped this"), "{text}");
}

#[tokio::test]
async fn a_module_without_its_own_configuration_is_told_from_a_token_that_is_gone() {
    let Some(stage) = Stage::new() else { return };
    let kek = Kek::random();
    let sealed = wrapped(&stage.seal(|_| ()), &kek).await;
    let (conf, aside) = (stage.path("softhsm2.conf"), stage.path("conf.aside"));
    fs::rename(&conf, &aside).unwrap();
    let waiting = stage.seal(|_| ());
    let missing = fault(&waiting, &sealed).await;
    assert!(unavailable(&missing).contains("check its own configuration"), "{missing}");
    fs::write(&conf, "directories.tokendir = /nonexistent/tokens\n").unwrap();
    let misled = fault(&waiting, &sealed).await;
    assert!(unavailable(&misled).contains("does not start"), "{misled}");
    fs::rename(&aside, &conf).unwrap();
    assert!(opens(&waiting, &sealed, &kek).await, "without a restart");
}

#[tokio::test]
async fn keys_are_made_once_rotated_by_label_and_never_guessed_among_duplicates() {
    let Some(stage) = Stage::new() else { return };
    let lacking = stage.seal(|config| config.generate_key = false);
    lacking.prepare().await.unwrap();
    needs_operator(&lacking.report().await.expect_err("no key"));
    let seal = stage.seal(|_| ());
    let kek = Kek::random();
    let old = wrapped(&seal, &kek).await;
    seal.prepare().await.unwrap();
    assert_eq!(seal.report().await.unwrap().key_id, old.key_id, "made once");
    seal.generate(true).await.unwrap();
    let new = seal.encrypt(&kek, b"aad").await.unwrap();
    assert_ne!(new.key_id, old.key_id);
    assert!(opens(&seal, &old, &kek).await && opens(&seal, &new, &kek).await);
    let (_, facts) = seal.facts().await.unwrap();
    assert_eq!((facts.keys_of_label, facts.never_left), (2, true));
    // Somebody else's tool made two keys that nothing tells apart.
    let twice = stage.seal(|config| {
        config.key_label = "twice".to_owned();
        config.key_id = Some(vec![7]);
    });
    twice.prepare().await.unwrap();
    let directory = stage.token_directories().remove(0);
    let newest = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "object"))
        .filter(|path| path.file_name().is_some_and(|name| name != "token.object"))
        .max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap())
        .unwrap();
    let copy = directory.join("00000000-0000-0000-0000-000000000001");
    fs::copy(&newest, copy.with_extension("object")).unwrap();
    fs::copy(newest.with_extension("lock"), copy.with_extension("lock")).unwrap();
    let again = stage.seal(|config| {
        config.key_label = "twice".to_owned();
        config.key_id = Some(vec![7]);
    });
    let error = again.encrypt(&kek, b"aad").await.expect_err("duplicates");
    assert!(needs_operator(&error).contains("delete all but one"), "{error}");
}

#[tokio::test]
async fn a_hung_module_costs_its_deadline_and_a_new_process_and_nothing_else() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    let timeout = Duration::from_secs(1);
    let seal = stage.seal(|config| config.timeout = timeout);
    let kek = Kek::random();
    let sealed = wrapped(&seal, &kek).await;
    for order in ["C_Decrypt hang\n", "C_Decrypt hanglock\n", "C_Initialize hang\n", "C_Login hanglock\n"] {
        stage.order(order);
        // A process that has logged in does so no more.
        let fresh = stage.seal(|config| config.timeout = timeout);
        let began = Instant::now();
        let text = fault(&fresh, &sealed).await;
        assert!(unavailable(&text).contains("did not answer within 1s"), "{order}: {text}");
        assert!(began.elapsed() < timeout * 3, "{order}: {:?}", began.elapsed());
        stage.order("");
        assert!(opens(&fresh, &sealed, &kek).await, "after {order}");
    }
    assert!(opens(&seal, &sealed, &kek).await);
}

#[tokio::test]
async fn a_slow_token_is_waited_for_and_calls_queue_up() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    let seal = stage.seal(|_| ());
    let kek = Kek::random();
    let sealed = wrapped(&seal, &kek).await;
    stage.order("C_Decrypt delay 400\n");
    let began = Instant::now();
    let (one, two) = tokio::join!(opens(&seal, &sealed, &kek), opens(&seal, &sealed, &kek));
    assert!(one && two);
    assert!(began.elapsed() >= Duration::from_millis(800), "one at a time: {:?}", began.elapsed());
    // A call that is dropped half-way leaves the next one alone.
    let dropped = tokio::time::timeout(Duration::from_millis(100), opens(&seal, &sealed, &kek)).await;
    assert!(dropped.is_err());
    stage.order("");
    assert!(opens(&seal, &sealed, &kek).await);
}

#[tokio::test]
async fn a_crash_and_a_lost_session_cost_a_new_process() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    let seal = stage.seal(|_| ());
    let kek = Kek::random();
    let sealed = wrapped(&seal, &kek).await;
    stage.order("C_Decrypt crash\n");
    let text = fault(&seal, &sealed).await;
    assert!(unavailable(&text).contains("signal 11"), "{text}");
    stage.order("");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !opens(&seal, &sealed, &kek).await {
        assert!(Instant::now() < deadline, "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // CKR_DEVICE_ERROR, _DEVICE_REMOVED, _SESSION_HANDLE_INVALID, _SESSION_COUNT, _OBJECT_HANDLE_INVALID.
    for code in ["0x30", "0x32", "0xB3", "0xB1", "0x82"] {
        stage.order(&format!("C_DecryptInit err {code}\nC_OpenSession err {code}\n"));
        unavailable(&fault(&seal, &sealed).await);
        stage.order("");
        assert!(opens(&seal, &sealed, &kek).await, "after {code}");
    }
}

#[tokio::test]
async fn random_bytes_come_from_the_token() {
    let Some(stage) = Stage::new() else { return };
    let seal = stage.seal(|_| ());
    let one = seal.random(32).await.unwrap().expect("SoftHSM has a generator");
    let two = seal.random(32).await.unwrap().expect("SoftHSM has a generator");
    assert_eq!((one.len(), two.len()), (32, 32));
    assert_ne!(*one, *two);
}

#[tokio::test]
async fn two_that_make_the_key_at_once_are_found_out() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    // Both have found no key long before either makes one.
    stage.order("C_GenerateKey delay 2000\n");
    let (one, two) = (stage.seal(|_| ()), stage.seal(|_| ()));
    let made = tokio::join!(one.prepare(), two.prepare());
    assert!(made.0.is_err() || made.1.is_err(), "the later one counts two keys");
    let fresh = stage.seal(|_| ());
    match fresh.encrypt(&Kek::random(), b"aad").await {
        // SoftHSM may refuse one of two that write at the same moment: then there is one key, and one was told so.
        Ok(_) => assert_eq!(fresh.facts().await.unwrap().1.keys_of_label, 1),
        Err(refused) => assert!(needs_operator(&refused).contains("delete all but one"), "{refused}"),
    }
}

#[tokio::test]
async fn another_key_of_the_same_label_and_id_is_told_by_its_check_value() {
    let Some(stage) = Stage::new() else { return };
    let serial = stage.token("zone-b");
    let mut seals = ["zone-a", "zone-b"].map(|label| {
        stage.seal(|config| {
            config.token_label = Some(label.to_owned());
            config.key_id = Some(vec![7]);
        })
    });
    let kek = Kek::random();
    let sealed = wrapped(&seals[0], &kek).await;
    let others = wrapped(&seals[1], &kek).await;
    assert_eq!(sealed.key_id, others.key_id);
    let text = fault(&seals[1], &sealed).await;
    assert!(not_ours(&text).contains("another one"), "{text}");
    assert!(opens(&seals[1], &others, &kek).await, "{serial}");
    seals.reverse();
    not_ours(&fault(&seals[1], &others).await);
}

/// The process that `parent` started as a helper.
fn helper_of(parent: u32) -> Option<u32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let mut pids = processes.filter_map(|name| name.parse().ok());
    pids.find(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent))
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} in 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_hung_helper_ends_with_its_parent_and_never_had_the_pin_where_others_see_it() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    stage.order("C_Login hanglock\n");
    let secret = "pin-57121";
    let mut command = std::process::Command::new(stage::BINARY);
    command.args(["hsm", "status", "-token-label=zone-a", "-timeout=60s"]);
    command
        .arg(format!("-lib={}", stage.module.display()))
        .env("VAULT_HSM_PIN", secret)
        .env("OF_A_STANZA", secret);
    let mut parent = stage.under(&mut command).spawn().unwrap();
    let helper = wait_for("helper", || helper_of(parent.id()));
    wait_for("login", || (stage.logins() > 0).then_some(()));
    for file in ["cmdline", "environ"] {
        // Where it cannot be read, nobody else can read it either.
        let seen = fs::read(format!("/proc/{helper}/{file}")).unwrap_or_default();
        assert!(!seen.windows(secret.len()).any(|part| part == secret.as_bytes()), "the PIN is in {file}");
    }
    let limits = fs::read_to_string(format!("/proc/{helper}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    // Whoever inherits it may be slow to take note of its end.
    wait_for("end of the helper", || {
        state_and_parent(helper).is_none_or(|(state, _)| state == 'Z').then_some(())
    });
}

fn json(output: &std::process::Output) -> serde_json::Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn the_commands_prepare_show_and_rotate_a_token() {
    let Some(stage) = Stage::new() else { return };
    let bare = stage.hsm("status", &[]);
    let shown = String::from_utf8_lossy(&bare.stdout).into_owned();
    assert_eq!(bare.status.code(), Some(1), "{bare:?}");
    assert!(shown.contains("zone-a") && shown.contains("keystead hsm init"), "{shown}");
    let made = json(&stage.hsm("init", &["-format=json"]));
    assert_eq!(made["made"], true);
    let again = json(&stage.hsm("init", &["-format=json"]));
    assert_eq!((&again["made"], &again["key"]), (&false.into(), &made["key"]));
    let seal = stage.seal(|config| config.generate_key = false);
    let kek = Kek::random();
    let old = seal.encrypt(&kek, b"aad").await.unwrap();
    assert_eq!(made["key"], old.key_id.as_str());
    let rotated = json(&stage.hsm("rotate-key", &["-format=json"]));
    assert_ne!(rotated["key"], made["key"]);
    // A seal that is open all the while sees the new key, and still opens what the old one wrapped.
    assert_eq!(rotated["key"], seal.encrypt(&kek, b"aad").await.unwrap().key_id.as_str());
    assert!(opens(&seal, &old, &kek).await);
    let status = json(&stage.hsm("status", &["-format=json"]));
    let only = &status[0];
    assert_eq!((&only["key"], &only["keys_of_label"]), (&rotated["key"], &2.into()));
    assert_eq!((&only["mechanism"], &only["never_left_token"]), (&"CKM_AES_GCM".into(), &true.into()));
    assert!(only["round_trip_us"].as_u64().is_some_and(|us| us > 0), "{only}");
}

#[tokio::test]
async fn the_commands_work_on_the_stanza_of_a_file_and_say_what_is_wrong() {
    let Some(stage) = Stage::new().map(Stage::forwarded) else { return };
    let file = stage.path("vault.hcl");
    let data = stage.path("data");
    let text = |pin: &str| {
        format!(
            "storage \"raft\" {{\n path = \"{}\"\n}}\nlistener \"tcp\" {{\n tls_disable = 1\n}}\n\
             seal \"pkcs11\" {{\n name = \"a\"\n lib = \"{}\"\n token_label = \"zone-a\"\n pin = \"{pin}\"\n}}\n",
            data.display(),
            stage.module.display()
        )
    };
    let run = |command: &str, more: &[&str]| {
        let config = format!("-config={}", file.display());
        stage.run(std::process::Command::new(stage::BINARY).args(["hsm", command, &config]).args(more))
    };
    fs::write(&file, text(stage::PIN)).unwrap();
    assert_eq!(json(&run("init", &["-format=json"]))["seal"], "a");
    fs::write(&file, text("9999")).unwrap();
    let logins = stage.logins();
    for _ in 0..3 {
        let refused = run("status", &[]);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(why.contains("refused-pin-a") && !why.contains("9999"), "{why}");
    }
    assert_eq!(stage.logins(), logins + 1, "a wrong PIN is tried once");
    assert_eq!(run("status", &["-retry-pin"]).status.code(), Some(2));
    assert_eq!(stage.logins(), logins + 2);
    fs::write(&file, text(stage::PIN)).unwrap();
    assert_eq!(run("status", &[]).status.code(), Some(2), "none is tried unasked");
    assert_eq!(json(&run("status", &["-format=json", "-retry-pin"]))[0]["seal"], "a");
    assert_eq!(json(&run("status", &["-format=json"]))[0]["seal"], "a");
    let unknown = run("init", &["-seal=b"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("\"b\""), "{unknown:?}");
    let bad = run("status", &["-slot=x"]);
    assert!(String::from_utf8_lossy(&bad.stderr).contains("-slot"), "{bad:?}");
}

#[test]
fn the_helpers_role_is_no_command() {
    let by_hand = std::process::Command::new(stage::BINARY)
        .arg("hsm-helper")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(by_hand.status.code(), Some(1), "{by_hand:?}");
    let help = std::process::Command::new(stage::BINARY).arg("-help").output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hsm-helper"));
}
