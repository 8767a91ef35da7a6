//! Waiting for a condition: polled, with a deadline, and told what was seen last.

use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Polls until `look` gives `Ok`; its `Err` is what is reported when the deadline passes.
///
/// # Errors
/// [`Error::Deadline`] with the last thing seen.
pub async fn until<T, E, F>(what: &str, at_most: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    E: std::fmt::Display,
    F: Future<Output = std::result::Result<T, E>>,
{
    let start = Instant::now();
    loop {
        let last = match look().await {
            Ok(value) => return Ok(value),
            Err(last) => last,
        };
        if start.elapsed() >= at_most {
            return Err(Error::Deadline {
                what: what.into(),
                waited: start.elapsed(),
                last: last.to_string(),
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// [`until`] for a condition that is looked at without waiting.
///
/// # Errors
/// [`Error::Deadline`].
pub async fn until_now<T>(
    what: &str,
    at_most: Duration,
    mut look: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    until(what, at_most, || std::future::ready(look())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_never_comes_is_given_up_with_what_was_seen() {
        let error =
            until_now::<()>("rain", Duration::from_millis(50), || Err("sun".into())).await.unwrap_err();
        assert!(error.to_string().contains("for rain; last seen: sun"), "{error}");
    }

    #[tokio::test]
    async fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        let got = until_now("three looks", Duration::from_secs(5), || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(String::new()) }
        });
        assert_eq!(got.await.unwrap(), 3);
    }
}
