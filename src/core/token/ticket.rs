//! Tickets: for a client that cannot send its token, something that may be in a URL because it works once.
//!
//! A ticket is sealed, so that nobody can make or read one, and refers to a word of memory that all processes share. That
//! word holds the ticket's secret until it is used: whoever changes it to zero has used it, and nobody can after that, in
//! whatever process. A process that dies in between leaves a whole word.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::{Grants, Rejection, Token};

/// Bytes of a ticket: as long as a URL may be.
const LONGEST: usize = 64 * 1024;

/// Tickets that are out, with what makes and reads them.
pub struct Book {
    /// The first counts the tickets, the others have a secret each.
    words: &'static [AtomicU64],
    key: LessSafeKey,
}

/// What a ticket says.
#[derive(Serialize, Deserialize)]
struct Content {
    word: u32,
    secret: u64,
    /// Names what verified the token: elsewhere its grants may mean something else.
    verifier: u64,
    /// Unix time, seconds.
    until: u64,
    subject: Option<String>,
    id: Option<String>,
    expires: Option<u64>,
    ends: Option<u64>,
    subscribe: Vec<Vec<u8>>,
    publish: Vec<Vec<u8>>,
}

impl Book {
    /// A book in memory that is zero and that all processes share; None if the system has no random numbers.
    pub fn new(words: &'static [AtomicU64]) -> Option<Book> {
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key).ok()?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).ok()?;
        (words.len() > 1).then(|| Book {
            words,
            key: LessSafeKey::new(key),
        })
    }

    /// Makes a ticket for some of the channels that a token grants, valid until `until`. It takes the place of the
    /// oldest one if too many are out.
    pub fn issue(&self, token: &Token, ids: &[&[u8]], verifier: u64, until: u64) -> Option<String> {
        let mut random = [0; 8 + NONCE_LEN];
        SystemRandom::new().fill(&mut random).ok()?;
        let (secret, nonce) = random.split_first_chunk::<8>()?;
        // Zero is a ticket that was used.
        let secret = u64::from_ne_bytes(*secret).max(1);
        let granted = |grants: &Grants| {
            let granted = ids.iter().filter(|id| grants.allows(id));
            granted.map(|id| id.to_vec()).collect()
        };
        let places = self.words.len() as u64 - 1;
        let word = 1 + self.words[0].fetch_add(1, Ordering::Relaxed) % places;
        let content = Content {
            word: word as u32,
            secret,
            verifier,
            until,
            subject: token.subject.as_deref().map(str::to_owned),
            id: token.id.as_deref().map(str::to_owned),
            expires: token.expires,
            ends: token.ends,
            subscribe: granted(&token.subscribe),
            publish: granted(&token.publish),
        };
        let mut sealed = postcard::to_allocvec(&content).ok()?;
        let sealing = Nonce::try_assume_unique_for_key(nonce).ok()?;
        self.key
            .seal_in_place_append_tag(sealing, Aad::empty(), &mut sealed)
            .ok()?;
        let text = URL_SAFE_NO_PAD.encode([nonce, &sealed[..]].concat());
        // Only this word is shared: the ticket itself travels with the client.
        self.words[word as usize].store(secret, Ordering::Relaxed);
        (text.len() <= LONGEST).then_some(text)
    }

    /// Uses a ticket. A second time it is refused.
    pub fn redeem(&self, ticket: &[u8], verifier: u64, now: u64) -> Result<Token, Rejection> {
        let content = self.open(ticket, verifier, now)?;
        let word = self.words.get(content.word as usize).ok_or(Rejection::Ticket)?;
        word.compare_exchange(content.secret, 0, Ordering::Relaxed, Ordering::Relaxed)
            .map_err(|_| Rejection::Ticket)?;
        Ok(content.into_token())
    }

    /// What a ticket says, whether it was used or not: for the log, after it was.
    pub fn peek(&self, ticket: &[u8], verifier: u64, now: u64) -> Result<Token, Rejection> {
        self.open(ticket, verifier, now).map(Content::into_token)
    }

    fn open(&self, ticket: &[u8], verifier: u64, now: u64) -> Result<Content, Rejection> {
        if ticket.len() > LONGEST {
            return Err(Rejection::Ticket);
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(ticket).map_err(|_| Rejection::Ticket)?;
        let (nonce, sealed) = bytes.split_first_chunk_mut::<NONCE_LEN>().ok_or(Rejection::Ticket)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key.open_in_place(nonce, Aad::empty(), sealed);
        let content: Content = opened
            .ok()
            .and_then(|content| postcard::from_bytes(content).ok())
            .ok_or(Rejection::Ticket)?;
        if content.verifier != verifier || now >= content.until || content.word == 0 {
            return Err(Rejection::Ticket);
        }
        Ok(content)
    }
}

impl Content {
    fn into_token(self) -> Token {
        Token {
            subject: self.subject.map(Into::into),
            id: self.id.map(Into::into),
            expires: self.expires,
            ends: self.ends,
            begins: None,
            subscribe: Grants::of_ids(self.subscribe),
            publish: Grants::of_ids(self.publish),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(words: usize) -> Book {
        let words: Vec<_> = std::iter::repeat_with(AtomicU64::default).take(words).collect();
        Book::new(words.leak()).unwrap()
    }

    fn token() -> Token {
        Token {
            subject: Some("42".into()),
            id: Some("t1".into()),
            expires: Some(2000),
            ends: Some(1900),
            begins: Some(1),
            subscribe: Grants::of_ids(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]),
            publish: Grants::of_ids(vec![b"b".to_vec()]),
        }
    }

    #[test]
    fn a_ticket_opens_the_channels_that_it_was_made_for_once() {
        let book = book(10);
        let ticket = book.issue(&token(), &[b"a", b"b", b"x"], 7, 1030).unwrap();
        assert_eq!(book.peek(ticket.as_bytes(), 7, 1000).map(drop), Ok(()));
        let opened = book.redeem(ticket.as_bytes(), 7, 1029).unwrap();
        assert_eq!(
            (opened.subject.as_deref(), opened.id.as_deref()),
            (Some("42"), Some("t1"))
        );
        assert_eq!((opened.expires, opened.ends), (Some(2000), Some(1900)));
        let granted = |grants: &Grants| [&b"a"[..], b"b", b"c", b"x"].map(|id| grants.allows(id));
        assert_eq!(granted(&opened.subscribe), [true, true, false, false]);
        assert_eq!(granted(&opened.publish), [false, true, false, false]);
        assert_eq!(book.redeem(ticket.as_bytes(), 7, 1029), Err(Rejection::Ticket));
        assert_eq!(book.peek(ticket.as_bytes(), 7, 1029).map(drop), Ok(()), "for the log");
    }

    #[test]
    fn a_ticket_is_for_its_time_its_verifier_and_its_book() {
        let (own, other) = (book(10), book(10));
        let ticket = own.issue(&token(), &[b"a"], 7, 1030).unwrap();
        let refused = Err(Rejection::Ticket);
        assert_eq!(own.redeem(ticket.as_bytes(), 7, 1030), refused, "too late");
        assert_eq!(own.redeem(ticket.as_bytes(), 8, 1000), refused, "another verifier");
        assert_eq!(other.redeem(ticket.as_bytes(), 7, 1000), refused, "another key");
        for text in [
            "",
            "a",
            "====",
            &"A".repeat(100),
            &ticket[1..],
            &ticket[..ticket.len() - 2],
        ] {
            assert_eq!(own.redeem(text.as_bytes(), 7, 1000), refused, "{text}");
        }
        for index in 0..ticket.len() {
            let mut changed = ticket.clone().into_bytes();
            changed[index] ^= 1;
            assert_eq!(own.redeem(&changed, 7, 1000), refused, "changed at {index}");
        }
        assert!(
            own.redeem(ticket.as_bytes(), 7, 1029).is_ok(),
            "none of this has used it"
        );
    }

    #[test]
    fn too_many_tickets_take_each_others_place() {
        let book = book(4);
        let tickets: Vec<_> = (0..4).map(|_| book.issue(&token(), &[b"a"], 0, 10).unwrap()).collect();
        let used: Vec<_> = tickets
            .iter()
            .map(|ticket| book.redeem(ticket.as_bytes(), 0, 1).is_ok())
            .collect();
        assert_eq!(used, [false, true, true, true]);
    }

    #[test]
    fn of_many_who_use_a_ticket_at_once_one_succeeds() {
        let book = book(3);
        for _ in 0..100 {
            let ticket = book.issue(&token(), &[b"a"], 0, 10).unwrap();
            let used: usize = std::thread::scope(|scope| {
                let tries: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| usize::from(book.redeem(ticket.as_bytes(), 0, 1).is_ok())))
                    .collect();
                tries.into_iter().map(|each| each.join().unwrap()).sum()
            });
            assert_eq!(used, 1);
        }
    }
}
