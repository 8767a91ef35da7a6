//! Judges a history that a trial left behind.
//!
//! `cargo run -p keystead-chaos --example check_history FILE`

use std::{error::Error, io::Write as _, path::Path};

use keystead_chaos::lin::{check, history};

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: check_history FILE")?;
    let operations = history::operations(&history::load(Path::new(&file))?);
    match check(&operations) {
        Ok(checked) => Ok(writeln!(std::io::stdout(), "linearizable: {checked}")?),
        Err(violation) => Err(violation.to_string().into()),
    }
}
