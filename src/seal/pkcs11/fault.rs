//! What a module's error means for whoever asked.

use cryptoki::error::{Error, RvError};

use super::protocol::Failure;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = describe(&error);
        match error {
            Error::LibraryLoading(_) | Error::MissingSymbol(_) => {
                Self::NeedsOperator(format!("the PKCS#11 module cannot be used: {text}; check \"lib\""))
            }
            Error::Pkcs11(code, _) => of_code(code, text),
            Error::NullFunctionPointer | Error::NotSupported => {
                Self::NeedsOperator(format!("the module lacks what is needed: {text}"))
            }
            _ => Self::Unavailable(text),
        }
    }
}

fn of_code(code: RvError, text: String) -> Failure {
    use RvError as E;
    match code {
        E::PinIncorrect | E::PinInvalid | E::PinLenRange => {
            Failure::PinRefused(format!("the token does not take the PIN ({text})"))
        }
        E::PinLocked => {
            Failure::PinRefused(format!("the token is locked ({text}); its security officer unlocks it"))
        }
        E::PinExpired => Failure::PinRefused(format!("the PIN has expired ({text}); set a new one")),
        E::UserPinNotInitialized => {
            Failure::NeedsOperator(format!("the token has no PIN for its user yet ({text}); set one"))
        }
        E::MechanismInvalid
        | E::MechanismParamInvalid
        | E::ArgumentsBad
        | E::KeyFunctionNotPermitted
        | E::KeyTypeInconsistent
        | E::KeySizeRange
        | E::KeyNotWrappable
        | E::KeyUnextractable
        | E::TemplateIncomplete
        | E::TemplateInconsistent
        | E::AttributeValueInvalid
        | E::TokenWriteProtected
        | E::SessionReadOnly
        | E::FunctionNotSupported => {
            Failure::NeedsOperator(format!("the token refuses what the stanza asks of it: {text}"))
        }
        _ => Failure::Unavailable(format!("the token does not work: {text}")),
    }
}

/// An error in a few words; the library's own are paragraphs.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => format!("C_{function:?} = {code:?}"),
        Error::LibraryLoading(why) => why.to_string(),
        Error::MissingSymbol(symbol) => format!("it has no {symbol}, so it is no PKCS#11 module"),
        Error::NullFunctionPointer => "a function is missing".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Whether a token refuses the parameters of a mechanism, and others may do.
pub(super) fn is_about_parameters(error: &Error) -> bool {
    matches!(error, Error::Pkcs11(RvError::ArgumentsBad | RvError::MechanismParamInvalid, _))
}
