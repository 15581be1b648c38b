//! Subjects as numbers: what is kept of `sub` while a connection lasts.

use std::hash::Hasher;
use std::num::NonZeroU64;

use ring::rand::{SecureRandom, SystemRandom};
use siphasher::sip::SipHasher24;

/// A subject's keyed hash: 8 bytes, from which nobody without the key can find the subject, or choose another one that
/// has the same.
pub type Subject = NonZeroU64;

/// What subjects are hashed with.
#[derive(Clone, Copy)]
pub struct SubjectKey(u64, u64);

impl SubjectKey {
    /// A random key; None if the system has no random numbers.
    pub fn random() -> Option<SubjectKey> {
        let mut key = [0; 16];
        SystemRandom::new().fill(&mut key).ok()?;
        let (first, second) = key.split_at(8);
        Some(SubjectKey(
            u64::from_ne_bytes(first.try_into().ok()?),
            u64::from_ne_bytes(second.try_into().ok()?),
        ))
    }

    pub fn hash(self, subject: &str) -> Subject {
        let mut hasher = SipHasher24::new_with_keys(self.0, self.1);
        hasher.write(subject.as_bytes());
        // Zero means none.
        NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_subjects_have_equal_numbers_under_one_key_only() {
        let (one, other) = (SubjectKey::random().unwrap(), SubjectKey::random().unwrap());
        assert_eq!(one.hash("42"), one.hash("42"));
        assert_ne!(one.hash("42"), one.hash("43"));
        assert_ne!(one.hash("42"), other.hash("42"));
        // The reference's test vector: key 00 01 … 0f, input 00 01 … 0e.
        let key = SubjectKey(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let input: String = (0..15u8).map(char::from).collect();
        assert_eq!(key.hash(&input).get(), 0xa129_ca61_49be_45e5);
    }
}
