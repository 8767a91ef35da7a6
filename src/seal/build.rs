//! The seals of a configuration, made from their stanzas.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{AutoSeal, FileSeal, Pkcs11Seal};
use crate::config::{SealStanza, SealStanzaKind};

/// Makes the seals that open by themselves, in the order of the stanzas, those of disabled ones too.
///
/// `data_dir` is where a seal may keep what it must remember; `program` is what helper processes run
/// ([`own_program`](super::own_program)). Nothing is opened or started here.
#[must_use]
pub fn build(stanzas: &[SealStanza], data_dir: Option<&Path>, program: &Path) -> Vec<Arc<dyn AutoSeal>> {
    let made = |stanza: &SealStanza| -> Option<Arc<dyn AutoSeal>> {
        match &stanza.kind {
            SealStanzaKind::Pkcs11(config) => {
                let program = PathBuf::from(program);
                Some(Arc::new(Pkcs11Seal::new(&stanza.name, (**config).clone(), data_dir, program)))
            }
            SealStanzaKind::File(config) => Some(Arc::new(FileSeal::new(&stanza.name, &config.path))),
            SealStanzaKind::Shamir => None,
        }
    };
    stanzas.iter().filter_map(made).collect()
}
