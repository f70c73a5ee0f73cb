//! Secret keys and tokens, which messages must not contain.

use std::sync::{Mutex, PoisonError};

/// All secrets that a store has used so far. Deliberately not `Debug`.
#[derive(Default)]
pub(super) struct Secrets(Mutex<Vec<String>>);

impl Secrets {
    /// Adds secrets. Earlier ones are kept, because a service may still return a key that has been replaced.
    pub(super) fn add(&self, secrets: impl IntoIterator<Item = String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for secret in secrets {
            if !secret.is_empty() && !known.contains(&secret) {
                known.push(secret);
            }
        }
        // Replace the longest first, because one may contain another.
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    }

    /// Returns the text with every secret replaced by `[secret]`.
    pub(super) fn redact(&self, text: &str) -> String {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "[secret]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_is_replaced_whole() {
        let secrets = Secrets::default();
        secrets.add(["key".to_owned(), "key+token".to_owned(), String::new()]);
        assert_eq!(secrets.redact("a key, a key+token and no kex"), "a [secret], a [secret] and no kex");
        secrets.add(["renewed".to_owned()]);
        assert_eq!(secrets.redact("key renewed"), "[secret] [secret]");
    }
}
