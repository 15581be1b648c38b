//! The messages of a handover, from a leaving nginx worker to another one and back.
//!
//! Three messages for each group of subscribers: the leaving worker's [`Offer`] goes with the subscribers' sockets; the
//! [`Answer`] says from which message on the other worker delivers to each; the [`Rest`] brings the unsent data before
//! that message. All begin with a [`VERSION`], because a reload may also replace the module.

use serde::{Deserialize, Serialize};

/// To be changed with every change of the messages. Workers of different versions hand nothing over to each other.
pub const VERSION: u8 = 2;

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
    /// Content coding of the response; None = as it is.
    pub coding: Option<String>,
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
    /// WebSocket: time of the unanswered ping; monotonic clock, milliseconds.
    pub unanswered_since_ms: Option<u64>,
    /// WebSocket: its messages are not published, for want of a grant.
    pub muted: bool,
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
                    channels: vec![b"a".to_vec(), vec![0, 255]],
                    end_due: u64::MAX - 1,
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
}
