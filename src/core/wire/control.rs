//! Live subscriptions: the names of sessions, what a client asks to change, and the messages between nginx workers
//! about it.
//!
//! ```text
//! POST {"session": "AAEAAAAAAAcAAAABAAAAAQ.wS3…", "subscribe": ["a", "b.b10"], "unsubscribe": ["c"],
//!       "token": "…", "last_event_id": "…"}
//! 200  {"session": "…", "channels": ["a", "b"]}
//! ```
//!
//! A session's name is where its reader is, and a secret. The secret is a keyed hash of the rest, by a key that the
//! reader's worker has made for itself: so it needs no memory, and nobody else can name a reader of that worker, nor one
//! that has taken the place of another.

use std::num::NonZeroU64;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::Map;
pub use serde_json::Value;

use super::channel_path;
use crate::token::json;

/// To be changed with every change of [`Change`] and [`Outcome`]: workers of several versions may share a zone.
const VERSION: u8 = 1;
/// Bytes of a secret.
const SECRET: usize = 16;
/// Bytes of the rest of a name.
const PUBLIC: usize = 14;
/// Bytes of a request at most.
pub const LONGEST: usize = 12 * 1024;
/// Channels in a request at most, of each list.
pub const MOST_CHANNELS: usize = 256;

/// Where a reader is: the public half of its session's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub slot: u16,
    pub slot_generation: u32,
    pub index: u32,
    pub generation: u32,
}

impl Place {
    fn to_bytes(self) -> [u8; PUBLIC] {
        let mut bytes = [0; PUBLIC];
        bytes[..2].copy_from_slice(&self.slot.to_be_bytes());
        bytes[2..6].copy_from_slice(&self.slot_generation.to_be_bytes());
        bytes[6..10].copy_from_slice(&self.index.to_be_bytes());
        bytes[10..].copy_from_slice(&self.generation.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; PUBLIC]) -> Place {
        let [s0, s1, a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Place {
            slot: u16::from_be_bytes([s0, s1]),
            slot_generation: u32::from_be_bytes([a, b, c, d]),
            index: u32::from_be_bytes([e, f, g, h]),
            generation: u32::from_be_bytes([i, j, k, l]),
        }
    }
}

/// A session's name.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub place: Place,
    secret: [u8; SECRET],
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.place.fmt(formatter)
    }
}

impl Session {
    pub fn parse(text: &str) -> Option<Session> {
        let (public, secret) = text.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        Some(Session {
            place: Place::from_bytes(decode(public)?.try_into().ok()?),
            secret: decode(secret)?.try_into().ok()?,
        })
    }

    pub fn to_text(self) -> String {
        let mut text = self.public_text();
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(self.secret, &mut text);
        text
    }

    /// The half of the name that may be shown to others.
    pub fn public_text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.place.to_bytes())
    }

    /// The event with which a stream tells its client, without an id: it is no position to resume from. `channels`:
    /// those that the client has now, once it has their history.
    pub fn to_event(self, channels: Option<&[Vec<u8>]>) -> Vec<u8> {
        let mut data = serde_json::json!({ "session": self.to_text() });
        if let Some(channels) = channels {
            data["channels"] = names(channels);
        }
        format!("event: session\ndata: {data}\n\n").into_bytes()
    }
}

/// What a worker makes and knows the secrets of its readers with.
pub struct Key(hmac::Key);

impl Key {
    /// None if the system has no random numbers.
    pub fn new() -> Option<Key> {
        let mut random = [0; 32];
        SystemRandom::new().fill(&mut random).ok()?;
        Some(Key(hmac::Key::new(hmac::HMAC_SHA256, &random)))
    }

    pub fn session(&self, place: Place) -> Session {
        let tag = hmac::sign(&self.0, &place.to_bytes());
        let mut secret = [0; SECRET];
        secret.copy_from_slice(&tag.as_ref()[..SECRET]);
        Session { place, secret }
    }

    /// Is the name's secret right? Takes as long for any wrong one: what is compared, in constant time, are hashes of
    /// the secrets, which nobody can predict.
    pub fn knows(&self, session: Session) -> bool {
        let right = hmac::sign(&self.0, &self.session(session.place).secret);
        hmac::verify(&self.0, &session.secret, right.as_ref()).is_ok()
    }
}

/// A channel to subscribe to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub id: Vec<u8>,
    pub backtrack: u32,
}

/// What a client asks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub session: Option<String>,
    pub subscribe: Vec<Wanted>,
    pub unsubscribe: Vec<Vec<u8>>,
    pub token: Option<String>,
    /// Channels that are subscribed to give everything above this id.
    pub last_event_id: Option<String>,
}

impl Request {
    /// Reads a request; the error says what is wrong.
    pub fn parse(body: &[u8]) -> Result<Request, &'static str> {
        Request::of(json::object(body).ok_or("Request is no JSON object, or has a member twice.")?)
    }

    /// The same of an object.
    pub fn of(object: Map<String, Value>) -> Result<Request, &'static str> {
        let mut request = Request::default();
        for (name, value) in object {
            match &name[..] {
                "session" => request.session = Some(text(value).ok_or("Member session must be a string.")?),
                "token" => request.token = Some(text(value).ok_or("Member token must be a string.")?),
                "last_event_id" => {
                    request.last_event_id = Some(text(value).ok_or("Member last_event_id must be a string.")?);
                }
                "subscribe" => request.subscribe = wanted(value).ok_or(BAD_SUBSCRIBE)?,
                "unsubscribe" => request.unsubscribe = ids(value).ok_or(BAD_UNSUBSCRIBE)?,
                _ => return Err("Request has an unknown member."),
            }
        }
        if request.subscribe.len().max(request.unsubscribe.len()) > MOST_CHANNELS {
            return Err("Request names more than 256 channels.");
        }
        if request
            .subscribe
            .iter()
            .any(|wanted| request.unsubscribe.contains(&wanted.id))
        {
            return Err("Request names a channel in both lists.");
        }
        Ok(request)
    }
}

const BAD_SUBSCRIBE: &str = "Member subscribe must be a list of channels.";
const BAD_UNSUBSCRIBE: &str = "Member unsubscribe must be a list of channels.";

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// Channels as in a path: each may have a backtrack.
fn wanted(value: Value) -> Option<Vec<Wanted>> {
    let one = |value: &Value| {
        let element = value.as_str().filter(|text| !text.contains('/'))?;
        let mut segments = channel_path::parse(element.as_bytes());
        let segment = segments.next().filter(|segment| !segment.id.is_empty())?;
        Some(Wanted {
            id: segment.id.to_vec(),
            backtrack: segment.backtrack,
        })
    };
    value.as_array()?.iter().map(one).collect()
}

/// Channels as they are called.
fn ids(value: Value) -> Option<Vec<Vec<u8>>> {
    let one = |value: &Value| Some(value.as_str().filter(|text| !text.is_empty())?.as_bytes().to_vec());
    value.as_array()?.iter().map(one).collect()
}

/// The subprotocol of WebSockets whose clients send operations.
pub const SUBPROTOCOL: &str = "push-stream.v1";

/// What the client of a WebSocket asks.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation {
    Change(Request),
    Publish {
        channels: Vec<Vec<u8>>,
        text: String,
        token: Option<String>,
    },
}

impl Operation {
    /// Reads an operation, and the client's id of it; the error says what is wrong.
    pub fn parse(text: &[u8]) -> (Value, Result<Operation, &'static str>) {
        let Some(mut object) = json::object(text) else {
            return (Value::Null, Err("Operation is no JSON object, or has a member twice."));
        };
        let id = match object.remove("id") {
            Some(id @ (Value::Number(_) | Value::String(_))) => id,
            _ => return (Value::Null, Err("Member id must be a number or a string.")),
        };
        (id, Operation::of(object))
    }

    fn of(mut object: Map<String, Value>) -> Result<Operation, &'static str> {
        let op = object.remove("op");
        let (list, needed) = match op.as_ref().and_then(Value::as_str) {
            Some("subscribe") => ("subscribe", true),
            Some("unsubscribe") => ("unsubscribe", true),
            Some("token") => ("token", false),
            Some("publish") => return Operation::publish(object),
            _ => return Err("Member op must be subscribe, unsubscribe, token or publish."),
        };
        let channels = object.remove("channels");
        if channels.is_some() != needed {
            return Err("Member channels must be there for all operations but token.");
        }
        if let Some(channels) = channels
            && object.insert(list.to_owned(), channels).is_some()
        {
            return Err("Operation has an unknown member.");
        }
        let known = |name: &String| name == list || matches!(&name[..], "token" | "last_event_id");
        if !object.keys().all(known) || !object.contains_key(list) {
            return Err("Operation has an unknown member, or lacks one.");
        }
        Request::of(object).map(Operation::Change)
    }

    fn publish(mut object: Map<String, Value>) -> Result<Operation, &'static str> {
        let channels = object.remove("channels").and_then(ids).filter(|ids| !ids.is_empty());
        let said = object.remove("text").and_then(text).filter(|text| !text.is_empty());
        let token = match object.remove("token") {
            None => None,
            Some(token) => Some(text(token).ok_or("Member token must be a string.")?),
        };
        match (channels, said) {
            (Some(channels), Some(text)) if object.is_empty() => Ok(Operation::Publish { channels, text, token }),
            _ => Err("Operation publish wants a list of channels and a text."),
        }
    }
}

/// The reply to an operation.
pub fn reply(id: &Value, status: u16, explain: Option<&str>, channels: Option<&[Vec<u8>]>) -> String {
    let mut reply = serde_json::json!({ "op": "reply", "id": id, "status": status });
    if let Some(explain) = explain {
        reply["explain"] = explain.into();
    }
    if let Some(channels) = channels {
        reply["channels"] = names(channels);
    }
    reply.to_string()
}

/// The change that a worker asks of a reader's worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// None: the client has sent it on the connection itself.
    pub session: Option<Session>,
    pub subscribe: Vec<Wanted>,
    pub unsubscribe: Vec<Vec<u8>>,
    pub last_event_id: Option<Vec<u8>>,
    /// A new token: when it ends, on the monotonic clock in milliseconds; the inner None: never.
    pub ends_ms: Option<Option<u64>>,
    /// The same: whose it is, if it says so.
    pub subject: Option<Option<NonZeroU64>>,
    /// A token grants the channels.
    pub checked: bool,
    pub authorized_channels_only: bool,
    pub may_follow_events: bool,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The channels that hold now.
    Done(Vec<Vec<u8>>),
    /// No such reader, or a wrong secret.
    Unknown,
    /// The reader is on its way to another worker, where it gets another name.
    Moving,
    Refused(Refused),
}

/// Why a change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refused {
    /// A stream without channels.
    LastChannel,
    TooManyChannels,
    TooManySubscribers,
    NotGranted,
    ZoneFull,
    MayNotCreate,
    EventsChannel,
    ChannelLimit,
    Unavailable,
}

impl Refused {
    /// Status and explanation, as in the answer to a request.
    pub fn verdict(self) -> (u16, &'static str) {
        match self {
            Refused::LastChannel => (409, "A stream keeps at least one channel."),
            Refused::TooManyChannels => (409, "Session has too many channels."),
            Refused::TooManySubscribers => (409, "Subscribers limit per channel has been exceeded."),
            Refused::ChannelLimit => (409, "Number of channels were exceeded."),
            Refused::NotGranted => (403, "Token does not grant the channels."),
            Refused::MayNotCreate => (403, "Subscriber could not create channels."),
            Refused::EventsChannel => (403, "Subscription to events channel is not allowed."),
            Refused::ZoneFull => (507, "Zone is full."),
            Refused::Unavailable => (503, "Worker is not ready."),
        }
    }
}

/// A message between workers.
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

/// The body of the answer to a change. Ids that are no UTF-8 are shown with replacement characters.
pub fn channels_text(channels: &[Vec<u8>]) -> String {
    serde_json::json!({ "channels": names(channels) }).to_string()
}

fn names(channels: &[Vec<u8>]) -> Value {
    let name = |id: &Vec<u8>| String::from_utf8_lossy(id).into_owned().into();
    Value::Array(channels.iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        slot: 3,
        slot_generation: 70_000,
        index: 1 << 20,
        generation: 5,
    };

    #[test]
    fn a_name_is_known_to_the_worker_that_made_it_and_to_no_other() {
        let (key, other) = (Key::new().unwrap(), Key::new().unwrap());
        let session = key.session(PLACE);
        let read = Session::parse(&session.to_text()).unwrap();
        assert_eq!((read, read.place), (session, PLACE));
        assert!(key.knows(read) && !other.knows(read));
        assert_eq!(session.to_text().len(), 19 + 1 + 22);
        assert!(!format!("{session:?}").contains("secret"));
        let event = String::from_utf8(session.to_event(Some(&[b"a".to_vec()]))).unwrap();
        let data = event.strip_prefix("event: session\ndata: ").unwrap().trim_end();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            data,
            serde_json::json!({ "session": session.to_text(), "channels": ["a"] })
        );
    }

    #[test]
    fn no_changed_name_is_known() {
        let key = Key::new().unwrap();
        let text = key.session(PLACE).to_text();
        let mut read = 0;
        for at in 0..text.len() {
            for other in ["A", "B", "Q", "w", "_", "."] {
                let changed = [&text[..at], other, &text[at + 1..]].concat();
                if changed != text
                    && let Some(session) = Session::parse(&changed)
                {
                    read += 1;
                    assert!(!key.knows(session), "{changed}");
                }
            }
        }
        assert!(read > 100, "only {read} could be read");
        for text in ["", ".", "a.b", &text[1..], &text[..text.len() - 1], "\u{e9}"] {
            assert_eq!(Session::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_request_is_read_strictly() {
        let request = Request::parse(
            br#"{"session":"s","subscribe":["a","b.b10","c.b"],"unsubscribe":["d.b1"],"token":"t","last_event_id":"7"}"#,
        )
        .unwrap();
        let wanted = |id: &[u8], backtrack| Wanted {
            id: id.to_vec(),
            backtrack,
        };
        assert_eq!(
            request,
            Request {
                session: Some("s".into()),
                subscribe: vec![wanted(b"a", 0), wanted(b"b", 10), wanted(b"c.b", 0)],
                unsubscribe: vec![b"d.b1".to_vec()],
                token: Some("t".into()),
                last_event_id: Some("7".into()),
            }
        );
        for bad in [
            "",
            "[]",
            "{\"session\":1}",
            "{\"session\":\"a\",\"session\":\"b\"}",
            "{\"subscribe\":\"a\"}",
            "{\"subscribe\":[\"\"]}",
            "{\"subscribe\":[\".b3\"]}",
            "{\"subscribe\":[\"a/b\"]}",
            "{\"subscribe\":[1]}",
            "{\"unsubscribe\":[\"\"]}",
            "{\"unsubscribe\":{}}",
            "{\"subscribe\":[\"a.b3\"],\"unsubscribe\":[\"a\"]}",
            "{\"else\":1}",
        ] {
            assert!(Request::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let many: Vec<String> = (0..=MOST_CHANNELS).map(|index| format!("\"{index}\"")).collect();
        assert!(Request::parse(format!("{{\"subscribe\":[{}]}}", many.join(",")).as_bytes()).is_err());
    }

    #[test]
    fn messages_come_back_and_those_of_another_version_do_not() {
        let change = Change {
            session: Some(Key::new().unwrap().session(PLACE)),
            subscribe: vec![Wanted {
                id: b"a".to_vec(),
                backtrack: 2,
            }],
            unsubscribe: vec![b"\xff".to_vec()],
            last_event_id: None,
            ends_ms: Some(Some(9)),
            subject: Some(NonZeroU64::new(7)),
            checked: true,
            authorized_channels_only: true,
            may_follow_events: false,
        };
        let mut bytes = encode(&change);
        assert_eq!(decode(&bytes), Some(change));
        assert_eq!(decode::<Outcome>(&bytes), None);
        bytes[0] += 1;
        assert_eq!(decode::<Change>(&bytes), None);
        assert_eq!(decode::<Change>(b""), None);
    }

    #[test]
    fn an_operation_is_read_strictly_and_has_its_id_back() {
        let (id, operation) =
            Operation::parse(br#"{"op":"subscribe","id":"x","channels":["a.b2"],"last_event_id":"4"}"#);
        let request = Request {
            subscribe: vec![Wanted {
                id: b"a".to_vec(),
                backtrack: 2,
            }],
            last_event_id: Some("4".into()),
            ..Request::default()
        };
        assert_eq!(operation, Ok(Operation::Change(request)));
        // The order of members is that of the JSON library, as it is built.
        let told: serde_json::Value = serde_json::from_str(&reply(&id, 200, None, Some(&[b"a".to_vec()]))).unwrap();
        let expected = serde_json::json!({"op": "reply", "id": "x", "status": 200, "channels": ["a"]});
        assert_eq!(told, expected);
        let (_, operation) = Operation::parse(br#"{"op":"token","id":1,"token":"t"}"#);
        assert!(matches!(
            operation,
            Ok(Operation::Change(Request { token: Some(_), .. }))
        ));
        let (_, operation) = Operation::parse(br#"{"op":"publish","id":1,"channels":["a"],"text":"t"}"#);
        assert!(matches!(operation, Ok(Operation::Publish { token: None, .. })));
        for bad in [
            "hello",
            r#"{"op":"subscribe","channels":["a"]}"#,
            r#"{"op":"subscribe","id":[],"channels":["a"]}"#,
            r#"{"op":"subscribe","id":1}"#,
            r#"{"op":"subscribe","id":1,"channels":["a"],"unsubscribe":["b"]}"#,
            r#"{"op":"subscribe","id":1,"channels":["a"],"session":"b"}"#,
            r#"{"op":"unsubscribe","id":1,"channels":[1]}"#,
            r#"{"op":"token","id":1}"#,
            r#"{"op":"token","id":1,"token":"t","channels":["a"]}"#,
            r#"{"op":"publish","id":1,"channels":[],"text":"t"}"#,
            r#"{"op":"publish","id":1,"channels":["a"],"text":""}"#,
            r#"{"op":"publish","id":1,"channels":["a"],"text":"t","more":1}"#,
            r#"{"op":"else","id":1}"#,
        ] {
            assert!(Operation::parse(bad.as_bytes()).1.is_err(), "{bad}");
        }
    }

    #[test]
    fn channels_are_told_as_json() {
        assert_eq!(
            channels_text(&[b"a\"b".to_vec(), b"\xff".to_vec()]),
            "{\"channels\":[\"a\\\"b\",\"\u{fffd}\"]}"
        );
    }
}
