//! The messages of a handover, from a leaving nginx worker to another one and back.
//!
//! Three messages for each group of subscribers: the leaving worker's [`Offer`] goes with the subscribers' sockets; the
//! [`Answer`] says from which message on the other worker delivers to each; the [`Rest`] brings the unsent data before
//! that message, and with it the [`Keys`] of those whose TLS the leaving worker had taken over. All begin with a
//! [`VERSION`], because a reload may also replace the module.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::tls::{Ciphertext, State};

/// To be changed with every change of the messages. Workers of different versions hand nothing over to each other.
pub const VERSION: u8 = 6;

/// Subscribers on offer, in the order of their sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Locations that the subscribers refer to.
    pub locations: Vec<LocationName>,
    pub subscribers: Vec<Subscriber>,
}

/// Names a subscriber location across a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocationName {
    /// Server and location, as configured.
    pub path: Vec<u8>,
    /// Index among the locations with that path, and their number. If their number has changed, the location is
    /// ambiguous.
    pub number: u32,
    pub count: u32,
}

/// One subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscriber {
    /// Index in [`Offer::locations`].
    pub location: u32,
    /// Subscriber mode, as named in the statistics.
    pub mode: String,
    /// The response is chunked (HTTP/1.1).
    pub chunked: bool,
    /// Its TLS was taken over from OpenSSL: the state comes with the rest.
    pub tls: bool,
    /// Content coding of the response; None = as it is.
    pub coding: Option<String>,
    /// WebSocket: the bits of the window of compressed messages, and whether one may refer to those before it; None =
    /// they are not compressed.
    pub deflate: Option<(u8, bool)>,
    /// Minimum bytes of a message, with padding (`push_stream_padding_by_user_agent`).
    pub message_min: u32,
    /// Ids of its channels; one that it follows twice is listed twice.
    pub channels: Vec<Vec<u8>>,
    /// Key of its client's address, if connections per address are limited.
    pub address: Option<Vec<u8>>,
    /// Monotonic clock, milliseconds; None = never.
    pub ping_due_ms: Option<u64>,
    /// When and why it ends, as the module keeps it.
    pub end_due: u64,
    /// Whose access token it has, as a keyed hash.
    pub subject: Option<NonZeroU64>,
    /// WebSocket: time of the unanswered ping; monotonic clock, milliseconds.
    pub unanswered_since_ms: Option<u64>,
    /// WebSocket: its messages are not published, for want of a grant.
    pub muted: bool,
    /// WebSocket: its client sends operations.
    pub operates: bool,
    /// Figures for the disconnect log, if it is enabled.
    pub disconnect_record: Option<DisconnectRecord>,
}

/// A subscriber's figures for the disconnect log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisconnectRecord {
    pub who: Vec<u8>,
    /// Monotonic clock, milliseconds.
    pub began_ms: u64,
    pub messages: u64,
    pub bytes: u64,
}

/// For each subscriber of an [`Offer`], the sequence number up to which the leaving worker delivers; None = not taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer(pub Vec<Option<u64>>);

/// For each subscriber of an [`Offer`], the unsent data before the other worker's messages; None = the leaving worker
/// keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest(pub Vec<Option<Unsent>>);

/// Data not yet sent to a subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsent {
    /// Framed; the first message may be partly sent.
    pub bytes: Vec<u8>,
    /// Ordered resume: the subscriber's last event id once it has received all of `bytes`.
    pub position: Option<Vec<u8>>,
    /// A compressed response: CRC-32 and length, modulo 2^32, of its text up to the end of `bytes`.
    pub sum: Option<(u32, u32)>,
    /// TLS: what goes before `bytes`, and what has come of the client's next record.
    pub ciphertext: Option<Ciphertext>,
}

/// For each subscriber of a [`Rest`] that has a ciphertext, the secret part of its TLS, which belongs to the receiver
/// from then on. It goes beside the rest and never with it into a file.
#[derive(Default, Serialize, Deserialize)]
pub struct Keys(pub Vec<Option<State>>);

impl Keys {
    /// As [`encode`], in a buffer that never moves and is overwritten when dropped. Nothing if there are none, or if they
    /// cannot be encoded, which never happens: they are shorter.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        if self.0.iter().all(Option::is_none) {
            return Zeroizing::default();
        }
        // The length of the list takes 10 bytes at most.
        let mut bytes = Zeroizing::new(vec![0; 1 + 10 + self.0.len() * State::ENCODED]);
        bytes[0] = VERSION;
        let len = postcard::to_slice(self, &mut bytes[1..]).map_or(0, |encoded| 1 + encoded.len());
        bytes[len..].zeroize();
        bytes.truncate(len);
        bytes
    }

    /// Those in `bytes` for a rest of so many subscribers; None if they are malformed or too few.
    pub fn decode(bytes: &[u8], subscribers: usize) -> Option<Keys> {
        if bytes.is_empty() {
            return Some(Keys((0..subscribers).map(|_| None).collect()));
        }
        decode::<Keys>(bytes).filter(|keys| keys.0.len() == subscribers)
    }
}

/// A message, preceded by the version.
pub fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    // It fails only for a sequence of unknown length; all of these know theirs.
    postcard::to_extend(message, vec![VERSION]).unwrap_or_default()
}

/// The message in `bytes`; None if its version differs or it is malformed.
pub fn decode<M: for<'b> Deserialize<'b>>(bytes: &[u8]) -> Option<M> {
    let (&version, message) = bytes.split_first()?;
    let (message, rest) = postcard::take_from_bytes(message).ok().filter(|_| version == VERSION)?;
    rest.is_empty().then_some(message)
}

#[cfg(test)]
mod tests {
    use super::super::tls::{Half, Secret, Session, Suite};
    use super::*;

    fn offer() -> Offer {
        Offer {
            locations: vec![LocationName {
                path: b"example.org /sub".to_vec(),
                number: 1,
                count: 2,
            }],
            subscribers: vec![
                Subscriber {
                    mode: "eventsource".into(),
                    chunked: true,
                    coding: Some("gzip".into()),
                    deflate: Some((9, true)),
                    channels: vec![b"a".to_vec(), vec![0, 255]],
                    end_due: u64::MAX - 1,
                    subject: NonZeroU64::new(u64::MAX),
                    disconnect_record: Some(DisconnectRecord {
                        who: b"client=::1".to_vec(),
                        began_ms: 7,
                        messages: 1,
                        bytes: u64::MAX,
                    }),
                    ..Subscriber::default()
                },
                Subscriber::default(),
            ],
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        assert_eq!(decode(&encode(&offer())), Some(offer()));
        let answer = Answer(vec![Some(0), None, Some(u64::MAX)]);
        assert_eq!(decode(&encode(&answer)), Some(answer));
        let rest = Rest(vec![
            None,
            Some(Unsent {
                bytes: vec![1; 100_000],
                position: Some(b"3-4".to_vec()),
                sum: Some((u32::MAX, 7)),
                ciphertext: Some(Ciphertext {
                    tail: vec![2; 300],
                    begun: vec![23, 3],
                }),
            }),
        ]);
        assert_eq!(decode(&encode(&rest)), Some(rest));
    }

    #[test]
    fn another_version_is_not_understood() {
        let mut bytes = encode(&offer());
        bytes[0] += 1;
        assert_eq!(decode::<Offer>(&bytes), None);
        assert_eq!(decode::<Offer>(&[]), None);
    }

    #[test]
    fn a_message_that_is_cut_or_too_long_is_refused() {
        let whole = encode(&offer());
        for end in 0..whole.len() {
            assert_eq!(decode::<Offer>(&whole[..end]), None, "{end} bytes");
        }
        assert_eq!(decode::<Offer>(&[whole, vec![0]].concat()), None);
    }
    fn session(suite: Suite, number: u64) -> Session {
        let half = |fill| Half {
            secret: Secret::new(suite, &vec![fill; suite.secret_len()]).unwrap(),
            number,
        };
        Session::new(half(1), half(2)).unwrap()
    }

    #[test]
    fn keys_come_back_as_they_were() {
        let suites = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];
        let states = || {
            let states = suites
                .iter()
                .flat_map(|&suite| [0, u64::MAX].map(|number| session(suite, number)));
            states
                .map(|session| Some(session.into_parts().0))
                .chain([None])
                .collect()
        };
        let keys = Keys(states());
        let encoded = keys.encode();
        let decoded = Keys::decode(&encoded, 7).unwrap();
        assert_eq!(decoded.encode(), encoded, "all of it");
        assert!(decoded.0[6].is_none());
        for (state, (suite, number)) in decoded
            .0
            .into_iter()
            .flatten()
            .zip(suites.iter().flat_map(|&suite| [(suite, 0), (suite, u64::MAX)]))
        {
            let session = Session::from_parts(state, Ciphertext::default()).unwrap();
            assert_eq!(session.suite(), suite);
            assert_eq!(session.next_number(), number);
        }
        assert!(Keys::decode(&encoded, 6).is_none(), "of another number of subscribers");
        for end in 1..encoded.len() {
            assert!(Keys::decode(&encoded[..end], 7).is_none(), "{end} bytes");
        }
        let mut other = encoded.to_vec();
        other[0] += 1;
        assert!(Keys::decode(&other, 7).is_none(), "another version");
    }

    #[test]
    fn the_longest_keys_fit() {
        let longest = || Some(session(Suite::Aes256Gcm, u64::MAX).into_parts().0);
        let keys = Keys((0..250).map(|_| longest()).collect());
        let encoded = keys.encode();
        assert!(Keys::decode(&encoded, 250).is_some());
        assert!(encoded.len() <= 1 + 10 + 250 * State::ENCODED, "{}", encoded.len());
        assert!(encoded.capacity() > encoded.len(), "it never moved");
    }

    #[test]
    fn without_tls_there_are_no_keys() {
        let keys = Keys(vec![None, None]);
        assert!(keys.encode().is_empty());
        assert_eq!(Keys::decode(&[], 2).unwrap().0.len(), 2);
    }
}
