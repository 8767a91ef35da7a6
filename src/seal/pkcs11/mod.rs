//! `seal "pkcs11"`: a token behind a PKCS#11 module encrypts the KEK.
//!
//! The module lives in a helper process (this program again, see [`serve_helper`]): one that hangs is killed, one that
//! crashes, or whose token comes back, is started again; the node notices nothing but a delay. [`Pkcs11Seal`] is the
//! node's end. Calls go one at a time, each with a deadline; a fault of a process that has served before is looked into
//! once with a new one, for most modules do not recover from a token that was gone.
//!
//! Reading order: `protocol` (what the two say), `process` (the node's end of the socket), `helper` (the other end),
//! `token` and `keys` (what is done on the token), `blob` (what comes of it), `fault` (errors), `marker` (refused PINs).

mod blob;
mod fault;
mod helper;
mod keys;
mod marker;
mod process;
mod protocol;
mod token;

use std::path::{Path, PathBuf};
use std::time::Duration;

use keystead_raft::BoxFuture;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

pub use helper::{HELPER_ROLE, serve as serve_helper};
pub use protocol::{KeyFacts, TokenFacts};

use super::config::SealKind;
use super::{AutoSeal, SealFault, SealReport, SealedKek};
use crate::config::Pkcs11Config;
use crate::secret::{Kek, SecretBytes};
use marker::Refused;
use process::{Lost, Process};
use protocol::{Failure, Reply, Request, Target, Wiped};

/// Calls that may wait for their turn; more are refused at once.
const QUEUE_LEN: usize = 32;

/// Making a key takes longer than using one: seconds for RSA on small devices.
const GENERATE_TIMEOUTS: u32 = 6;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// The program that a helper process runs: the one that is running now, even if its file was replaced since.
#[must_use]
pub fn own_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// A seal on a token.
pub struct Pkcs11Seal {
    name: String,
    config: Pkcs11Config,
    program: PathBuf,
    refused: Refused,
    queue: Semaphore,
    state: Mutex<State>,
}

/// What the one who has his turn holds.
#[derive(Default)]
struct State {
    process: Option<Process>,
    token: Option<TokenFacts>,
    /// How many processes were lost since one last answered.
    lost: u32,
    /// No new process before this.
    not_before: Option<Instant>,
}

impl Pkcs11Seal {
    /// A seal of that name. Nothing is started before the first call.
    ///
    /// `data_dir` is where a refused PIN is remembered; `program` is what helpers run, [`own_program`] but in tests.
    #[must_use]
    pub fn new(name: &str, config: Pkcs11Config, data_dir: Option<&Path>, program: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            config,
            program,
            refused: Refused::of(data_dir, name),
            queue: Semaphore::new(QUEUE_LEN),
            state: Mutex::default(),
        }
    }

    /// What token it is, and what is its key.
    ///
    /// # Errors
    /// As those of [`AutoSeal`]'s methods.
    pub async fn facts(&self) -> Result<(TokenFacts, KeyFacts), SealFault> {
        let key = match self.call(Request::Facts).await? {
            Reply::Facts(key) => key,
            _ => return Err(self.nonsense()),
        };
        let token = self.state.lock().await.token.clone().unwrap_or_default();
        Ok((token, key))
    }

    /// Makes the wrapping key where there is none; with `rotate` one more, which is the current one from then on.
    ///
    /// # Errors
    /// As those of [`AutoSeal`]'s methods.
    pub async fn generate(&self, rotate: bool) -> Result<(), SealFault> {
        let Reply::Done = self.call(Request::Generate { rotate }).await? else { return Err(self.nonsense()) };
        // Did somebody else make one as well?
        let (_, key) = self.facts().await?;
        if key.missing.is_empty() { Ok(()) } else { Err(self.needs_operator(&key.missing)) }
    }

    /// Has a PIN tried again that the token refused.
    ///
    /// # Errors
    /// What keeps it from being forgotten.
    pub fn forget_refused_pin(&self) -> Result<(), SealFault> {
        let kept = |error| self.needs_operator(&format!("cannot forget the refused PIN: {error}"));
        self.refused.clear().map_err(kept)
    }

    async fn call(&self, request: Request) -> Result<Reply, SealFault> {
        let Ok(_place) = self.queue.try_acquire() else {
            return Err(self.unavailable("too many calls wait for the token"));
        };
        match timeout(self.deadline(), self.call_in_turn(&request)).await {
            Ok(answered) => answered,
            Err(_) => Err(self.unavailable("the token is still busy with earlier calls")),
        }
    }

    async fn call_in_turn(&self, request: &Request) -> Result<Reply, SealFault> {
        let mut state = self.state.lock().await;
        let once_only = matches!(request, Request::Generate { .. });
        loop {
            let (mut process, is_new) = match state.process.take() {
                Some(process) => (process, false),
                None => (self.start(&mut state).await?, true),
            };
            // From here to where it is put back, a call that is dropped takes the process along.
            let within = self.config.timeout * if once_only { GENERATE_TIMEOUTS } else { 1 };
            let failure = match process.exchange(request, within).await {
                Ok(Reply::Failed(failure)) => failure,
                Ok(reply) => {
                    // Who made a key counts again in a new process: SoftHSM, right after it wrote a key, does not see one
                    // that another process wrote at that moment.
                    if once_only {
                        process.end().await;
                    } else {
                        state.process = Some(process);
                    }
                    (state.lost, state.not_before) = (0, None);
                    return Ok(reply);
                }
                Err(lost) => {
                    let hung = matches!(lost, Lost::Hung);
                    let fault = self.lost(&mut state, process, lost).await;
                    if is_new || once_only || hung {
                        return Err(fault);
                    }
                    continue;
                }
            };
            if let Failure::NotOurs(text) = failure {
                state.process = Some(process);
                return Err(SealFault::NotOurs(self.said(&text)));
            }
            process.end().await;
            if is_new || once_only {
                return Err(self.fault(failure));
            }
        }
    }

    /// A process with the token found and its user logged in.
    async fn start(&self, state: &mut State) -> Result<Process, SealFault> {
        if let Some(wait) = state.not_before.and_then(|then| then.checked_duration_since(Instant::now())) {
            let text = format!("the module was lost {} times; it is tried again in {wait:.1?}", state.lost);
            return Err(self.unavailable(&text));
        }
        let pin = self.config.pin.read().map_err(|text| self.needs_operator(&text))?;
        let mut process = Process::start(&self.program, &pin)
            .map_err(|error| self.unavailable(&format!("cannot start the helper process: {error}")))?;
        let within = self.config.timeout;
        let token = match process.exchange(&Request::Open(Target::of(&self.config)), within).await {
            Ok(Reply::Opened(token)) => token,
            Ok(Reply::Failed(failure)) => return Err(self.ended(process, failure).await),
            Ok(_) => return Err(self.nonsense()),
            Err(lost) => return Err(self.lost(state, process, lost).await),
        };
        state.token = Some(token.clone());
        self.check_before_login(&token)?;
        let was_refused = self.refused.has(&token.serial, &pin).map_err(|error| {
            self.needs_operator(&format!("cannot tell whether the PIN was refused before: {error}"))
        })?;
        if was_refused {
            let text = format!(
                "token {} refused a PIN of this seal, and none is tried again unasked, so that the token is not locked; {}",
                token.serial,
                self.refused.remedy()
            );
            return Err(self.needs_operator(&text));
        }
        let login = Request::Login(Wiped(pin.expose().as_bytes().to_vec()));
        match process.exchange(&login, within).await {
            Ok(Reply::Done) => {
                if let Err(error) = self.refused.clear() {
                    tracing::warn!(seal = %self.name, %error, "cannot remove the record of a refused PIN");
                }
                Ok(process)
            }
            Ok(Reply::Failed(failure)) => {
                if matches!(failure, Failure::PinRefused(_))
                    && let Err(error) = self.refused.note(&token.serial, &pin)
                {
                    tracing::error!(seal = %self.name, %error, "cannot write down that the PIN was refused: a restart tries it again");
                }
                Err(self.ended(process, failure).await)
            }
            Ok(_) => Err(self.nonsense()),
            Err(lost) => Err(self.lost(state, process, lost).await),
        }
    }

    /// Refuses what a login could make worse.
    fn check_before_login(&self, token: &TokenFacts) -> Result<(), SealFault> {
        let TokenFacts { label, serial, .. } = token;
        if token.pin_locked {
            let text = format!("token \"{label}\" ({serial}) is locked; its security officer sets a new PIN");
            return Err(self.needs_operator(&text));
        }
        if token.pin_final_try {
            let text = format!(
                "one more wrong PIN locks token \"{label}\" ({serial}), so none is tried; log in once with the maker's \
                 own tool and the right PIN"
            );
            return Err(self.needs_operator(&text));
        }
        if !token.pin_initialized {
            let text =
                format!("token \"{label}\" ({serial}) has no PIN for its user; its security officer sets it");
            return Err(self.needs_operator(&text));
        }
        Ok(())
    }

    /// Ends a process that did not answer; the next one is started at once, later ones after a pause.
    async fn lost(&self, state: &mut State, process: Process, lost: Lost) -> SealFault {
        let ended = process.end().await;
        state.lost = state.lost.saturating_add(1);
        if state.lost > 1 {
            let factor = 1_u32 << (state.lost - 2).min(10);
            state.not_before = Some(Instant::now() + (FIRST_BACKOFF * factor).min(LONGEST_BACKOFF));
        }
        let text = match (lost, ended) {
            (Lost::Hung, _) => {
                format!("the module did not answer within {:?}; its process was killed", self.config.timeout)
            }
            (Lost::Ended(_), Some(how)) => format!("the module took its process along: {how}"),
            (Lost::Ended(error), None) => format!("the helper process was lost: {error}"),
        };
        tracing::warn!(seal = %self.name, "{text}");
        self.unavailable(&text)
    }

    async fn ended(&self, process: Process, failure: Failure) -> SealFault {
        process.end().await;
        self.fault(failure)
    }

    fn fault(&self, failure: Failure) -> SealFault {
        match failure {
            Failure::Unavailable(text) => self.unavailable(&text),
            Failure::NeedsOperator(text) => self.needs_operator(&text),
            Failure::NotOurs(text) => SealFault::NotOurs(self.said(&text)),
            Failure::PinRefused(text) => {
                self.needs_operator(&format!("{text}; it is not tried again: {}", self.refused.remedy()))
            }
        }
    }

    fn unavailable(&self, text: &str) -> SealFault {
        SealFault::Unavailable(self.said(text))
    }

    fn needs_operator(&self, text: &str) -> SealFault {
        SealFault::NeedsOperator(self.said(text))
    }

    fn nonsense(&self) -> SealFault {
        self.unavailable("the helper process answered something else than it was asked")
    }

    fn said(&self, text: &str) -> String {
        format!("seal \"{}\": {text}", self.name)
    }
}

impl AutoSeal for Pkcs11Seal {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SealKind {
        SealKind::Pkcs11
    }

    /// Opening the token, logging in and the call itself, once more with a new process; and making a key.
    fn deadline(&self) -> Duration {
        self.config.timeout * (GENERATE_TIMEOUTS + 3)
    }

    fn encrypt<'a>(&'a self, kek: &'a Kek, aad: &'a [u8]) -> BoxFuture<'a, Result<SealedKek, SealFault>> {
        Box::pin(async move {
            let request = Request::Encrypt { kek: Wiped(kek.expose().to_vec()), aad: aad.to_vec() };
            match self.call(request).await? {
                Reply::Sealed { key_id, blob } => Ok(SealedKek { key_id, blob }),
                _ => Err(self.nonsense()),
            }
        })
    }

    fn decrypt<'a>(&'a self, sealed: &'a SealedKek, aad: &'a [u8]) -> BoxFuture<'a, Result<Kek, SealFault>> {
        Box::pin(async move {
            let request = Request::Decrypt { blob: sealed.blob.clone(), aad: aad.to_vec() };
            match self.call(request).await? {
                Reply::Kek(kek) if kek.0.len() == Kek::LEN => {
                    Ok(Kek::filled(|own| own.copy_from_slice(&kek.0)))
                }
                _ => Err(self.nonsense()),
            }
        })
    }

    fn random(&self, len: usize) -> BoxFuture<'_, Result<Option<SecretBytes>, SealFault>> {
        Box::pin(async move {
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            match self.call(Request::Random { len }).await? {
                Reply::Random(mut bytes) => Ok(Some(SecretBytes::from(std::mem::take(&mut bytes.0)))),
                Reply::NoRandom => Ok(None),
                _ => Err(self.nonsense()),
            }
        })
    }

    fn report(&self) -> BoxFuture<'_, Result<SealReport, SealFault>> {
        Box::pin(async move {
            let (token, key) = self.facts().await?;
            if !key.missing.is_empty() {
                return Err(self.needs_operator(&key.missing));
            }
            let description = format!(
                "{}, token \"{}\" ({}), key {} by {}",
                token.module, token.label, token.serial, key.key_id, key.mechanism
            );
            Ok(SealReport { description, key_id: key.key_id })
        })
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), SealFault>> {
        Box::pin(async move { if self.config.generate_key { self.generate(false).await } else { Ok(()) } })
    }
}
