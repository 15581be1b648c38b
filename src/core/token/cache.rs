//! Verified tokens by the SHA-256 of their text: a reader that reconnects costs a hash, not a signature.

use std::collections::HashMap;
use std::rc::Rc;

use super::Token;

/// Tokens that are remembered.
pub const MOST: usize = 4096;

/// Two generations of equal size: what was used lately is in the young one, and the old one is dropped as a whole.
/// Only tokens with a valid signature come in, so that strangers cannot push others out.
#[derive(Debug, Default)]
pub struct Cache {
    young: HashMap<Key, Rc<Token>>,
    old: HashMap<Key, Rc<Token>>,
}

/// The hash of a token, and who has verified it: what is granted depends on both.
type Key = ([u8; 32], u32);

impl Cache {
    pub fn get(&mut self, hash: [u8; 32], verifier: u32) -> Option<Rc<Token>> {
        let key = (hash, verifier);
        if let Some(token) = self.young.get(&key) {
            return Some(token.clone());
        }
        let token = self.old.remove(&key)?;
        self.put(hash, verifier, token.clone());
        Some(token)
    }

    pub fn put(&mut self, hash: [u8; 32], verifier: u32, token: Rc<Token>) {
        if self.young.len() >= MOST / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert((hash, verifier), token);
    }

    /// Forgets all: the keys have changed.
    pub fn clear(&mut self) {
        *self = Cache::default();
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: usize) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_ne_bytes());
        hash
    }

    #[test]
    fn it_never_holds_more_than_its_bound_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        let token = Rc::new(Token::default());
        for number in 0..5 * MOST {
            cache.put(hash(number), 0, token.clone());
            assert!(cache.len() <= MOST);
            assert!(cache.get(hash(0), 0).is_some(), "used all the time, at {number}");
        }
        assert!(cache.get(hash(5 * MOST - 1), 0).is_some());
        assert!(cache.get(hash(1), 0).is_none(), "long unused");
        cache.clear();
        assert!(cache.is_empty());
    }

    #[test]
    fn a_token_is_known_to_its_verifier_only() {
        let mut cache = Cache::default();
        cache.put(hash(1), 7, Rc::new(Token::default()));
        assert!(cache.get(hash(1), 7).is_some());
        assert!(cache.get(hash(1), 8).is_none());
    }
}
