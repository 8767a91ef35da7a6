//! A new root token for people who have lost theirs: a threshold of the key holders agrees to it.
//!
//! The token leaves the node encrypted with a one-time password that the one who asks has, or with an OpenPGP key: the
//! holder of the last share, who gets the answer, cannot use it.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use keystead_raft::{ProposeOutcome, Replicated as _};
use keystead_storage::Txn;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{
    Node, OpenKeys,
    attempt::{Attempt, Authority},
    init::encrypting,
};
use crate::{
    core::{
        error::ApiError,
        node_ops::GenerateRootRequest,
        request::fresh_id,
        root_token_write,
        token::{TOKEN_LEN, random_otp, random_token},
    },
    seal::{PgpKey, SealConfig},
    secret::SecretString,
};

/// A root token that is asked for.
pub struct Generation {
    attempt: Attempt,
    recipient: Recipient,
}

/// What the token is encrypted with.
enum Recipient {
    Otp(SecretString),
    Pgp(Box<PgpKey>),
}

impl Recipient {
    fn of(otp: SecretString, pgp_key: &str) -> Result<Self, ApiError> {
        match (otp.expose().is_empty(), pgp_key.is_empty()) {
            (false, false) => Err(ApiError::invalid("only one of otp and pgp_key may be given")),
            (true, true) => Ok(Self::Otp(random_otp())),
            (true, false) => {
                let key = PgpKey::parse(pgp_key).map_err(|error| ApiError::invalid(error.to_string()))?;
                Ok(Self::Pgp(Box::new(key)))
            }
            (false, true) if otp.expose().len() != TOKEN_LEN => Err(ApiError::invalid(format!(
                "OTP string has incorrect length: it must have {TOKEN_LEN} characters"
            ))),
            (false, true) => Ok(Self::Otp(otp)),
        }
    }

    fn encode(&self, token: &SecretString) -> Result<String, ApiError> {
        match self {
            Self::Otp(otp) => {
                let pairs = token.expose().bytes().zip(otp.expose().bytes());
                let mixed: Zeroizing<Vec<u8>> = Zeroizing::new(pairs.map(|(a, b)| a ^ b).collect());
                Ok(STANDARD_NO_PAD.encode(&*mixed))
            }
            Self::Pgp(key) => Ok(STANDARD.encode(key.encrypt(token.expose()).map_err(|e| encrypting(&e))?)),
        }
    }

    fn fingerprint(&self) -> String {
        match self {
            Self::Otp(_) => String::new(),
            Self::Pgp(key) => key.fingerprint(),
        }
    }
}

impl Node {
    /// Begins, cancels or goes on with making a root token. To be asked of the node that leads. Who is `trusted` has shown
    /// a token.
    pub(super) async fn make_root_token(
        &self,
        request: GenerateRootRequest,
        trusted: bool,
    ) -> Result<Map<String, Value>, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        let mut current = self.root_token.lock().await;
        let term = replica.leadership().borrow().term;
        current.take_if(|generation| generation.attempt.term() != term);
        let (config, _) = self.present_config(keys.root())?;
        match request {
            GenerateRootRequest::Status => Ok(status(current.as_ref(), &config, trusted)),
            GenerateRootRequest::Begin { otp, pgp_key } => {
                let drawn = otp.expose().is_empty() && pgp_key.is_empty();
                let recipient = Recipient::of(otp, &pgp_key)?;
                if current.is_some() {
                    return Err(ApiError::invalid("root generation already in progress"));
                }
                let authority = Authority::of(&config);
                let set = authority.set(&config);
                let set = set.ok_or_else(|| {
                    ApiError::invalid("this vault has no recovery shares, whose holders would have to agree")
                })?;
                let attempt = Attempt::begin("root generation", authority, set, term);
                tracing::info!(nonce = attempt.nonce(), "the generation of a root token begins");
                let begun = &*current.insert(Generation { attempt, recipient });
                let mut answer = status(Some(begun), &config, true);
                if let (true, Recipient::Otp(otp)) = (drawn, &begun.recipient) {
                    answer.insert("otp".to_owned(), otp.expose().into());
                }
                Ok(answer)
            }
            GenerateRootRequest::Cancel { nonce } => {
                if let Some(generation) = &*current {
                    generation.attempt.may_cancel(&nonce, trusted)?;
                    tracing::info!("the generation of a root token was cancelled");
                }
                *current = None;
                Ok(Map::new())
            }
            GenerateRootRequest::Update { key, nonce } => {
                let generation =
                    current.as_mut().ok_or_else(|| ApiError::invalid("no root generation in progress"))?;
                if !generation.attempt.take(&config, &key, &nonce, trusted)? {
                    return Ok(status(Some(generation), &config, true));
                }
                let mut answer = status(Some(generation), &config, true);
                generation.attempt.prove(&config)?;
                let encoded = self.root_token_for(&generation.recipient, &keys).await.inspect_err(|_| {
                    generation.attempt.restart();
                })?;
                answer.insert("complete".to_owned(), true.into());
                answer.insert("encoded_token".to_owned(), encoded.as_str().into());
                answer.insert("encoded_root_token".to_owned(), encoded.into());
                *current = None;
                Ok(answer)
            }
        }
    }

    /// Makes a root token, and encrypts it.
    async fn root_token_for(&self, recipient: &Recipient, keys: &OpenKeys) -> Result<String, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let token = random_token();
        let encoded = recipient.encode(&token)?;
        let write = root_token_write(keys.unsealed(), &token, replica.cluster_time_ms())?;
        let txn = Txn { request_id: fresh_id(), writes: vec![write], ..Txn::default() };
        match replica.propose(txn).await {
            Ok(ProposeOutcome::Applied(_) | ProposeOutcome::Duplicate { .. }) => {
                metrics::counter!("keystead_root_tokens_generated_total").increment(1);
                tracing::warn!("a root token was generated");
                Ok(encoded)
            }
            Ok(ProposeOutcome::Conflict { .. }) => {
                Err(ApiError::Busy("the entry conflicted with another; enter the shares again".to_owned()))
            }
            // If it was written all the same, nobody was shown it.
            Err(error) => Err(ApiError::Internal(format!(
                "root generation aborted: {error}; enter the shares again, or begin anew"
            ))),
        }
    }
}

fn status(generation: Option<&Generation>, config: &SealConfig, trusted: bool) -> Map<String, Value> {
    let status = json!({
        "nonce": generation.map(|it| it.attempt.nonce_for(trusted)).unwrap_or_default(),
        "started": generation.is_some(),
        "progress": generation.map_or(0, |it| it.attempt.progress()),
        "required": Authority::of(config).set(config).map_or(0, |set| set.threshold),
        "complete": false,
        "encoded_token": "",
        "encoded_root_token": "",
        "pgp_fingerprint": generation.map(|it| it.recipient.fingerprint()).unwrap_or_default(),
        "otp": "",
        "otp_length": TOKEN_LEN,
    });
    status.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_takes_the_token_out_again() {
        let token = random_token();
        let Recipient::Otp(otp) = Recipient::of(SecretString::new(String::new()), "").unwrap() else {
            panic!("a password was to be drawn");
        };
        let encoded = Recipient::Otp(otp.clone()).encode(&token).unwrap();
        let mixed = STANDARD_NO_PAD.decode(encoded).unwrap();
        let again: Vec<u8> = mixed.iter().zip(otp.expose().bytes()).map(|(a, b)| a ^ b).collect();
        assert_eq!(again, token.expose().as_bytes());
    }

    #[test]
    fn a_password_of_another_length_and_two_ways_at_once_are_refused() {
        let refused = |otp: &str, key: &str| {
            Recipient::of(SecretString::new(otp.to_owned()), key).err().unwrap().to_string()
        };
        assert!(refused("short", "").starts_with("OTP string has incorrect length"));
        assert!(refused("short", "key").contains("only one"));
        assert!(refused("", "***").starts_with("error decoding given PGP key"));
    }
}
