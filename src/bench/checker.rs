//! The checker: judges every item that the subscribers of a process receive.

use std::ops::Range;

use serde_json::{Value, json};

use crate::flows::{Flow, Flows};
use crate::history::{History, Sighting};
use crate::latency::Latency;
use crate::message::{Mark, Messages};
use crate::transport::{Item, Message};

/// Maximum problems recorded individually.
const MAX_PROBLEMS: usize = 20;

/// The last message seen by a subscriber: publisher and sequence.
pub type Position = (u32, u32);

#[derive(Debug)]
pub struct Checker {
    flows: Flows,
    messages: Messages,
    /// Messages must carry the event ids that their publishers gave them.
    expects_ids: bool,
    /// Index of the process's first subscriber within the whole run.
    first: usize,
    pub history: History,
    pub latency: Latency,
    /// From the start of a connect to the response head.
    pub opening: Latency,
    pub counts: Counts,
    last_message_ns: u64,
    /// Unseen messages of departed subscribers.
    unseen: Vec<Value>,
    problems: Vec<String>,
    id: String,
}

#[derive(Debug, Default)]
pub struct Counts {
    /// Bytes read of incomplete messages: pings, which never stop, are no progress.
    pub partial_bytes: u64,
    /// Bytes of answers over HTTP/1 as sent, without their heads.
    pub wire_bytes: u64,
    pub messages: u64,
    pub comments: u64,
    pub foreign: u64,
    pub doubled: u64,
    pub out_of_order: u64,
    /// Responses other than requested.
    pub refused: u64,
    /// Responses that are not HTTP.
    pub malformed: u64,
    pub disconnects: u64,
    /// The part due to killed server processes.
    pub excused: u64,
    pub reconnects: u64,
    pub failed_connects: u64,
    /// Successful response heads over all connections.
    pub opened: u64,
    /// Visitors that left while messages flowed.
    pub departed: u64,
}

impl Checker {
    pub fn new(first: usize, subscribers: usize, flows: Flows, messages: Messages, expects_ids: bool) -> Self {
        Self {
            flows,
            messages,
            expects_ids,
            first,
            history: History::new(subscribers, flows.per_channel() as usize),
            latency: Latency::new(),
            opening: Latency::new(),
            counts: Counts::default(),
            last_message_ns: 0,
            unseen: Vec::new(),
            problems: Vec::new(),
            id: String::new(),
        }
    }

    pub fn problem(&mut self, subscriber: usize, text: impl FnOnce() -> String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems
                .push(format!("subscriber {}: {}", self.first + subscriber, text()));
        }
    }

    pub fn foreign(&mut self, subscriber: usize, bytes: &[u8], why: &str) {
        self.counts.foreign += 1;
        self.problem(subscriber, || {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
            format!("{why}: {shown:?}")
        });
    }

    /// The subscriber must get all messages to `channel` from now on.
    pub fn join(&mut self, subscriber: usize, channel: u32) {
        for publisher in 0..self.flows.per_channel() {
            let sent = self.flows.sent(Flow { channel, publisher });
            self.history.join(subscriber, publisher as usize, sent);
        }
    }

    /// The subscriber of `channel` has left and had to see all messages below `ends`, one per publisher.
    pub fn leave(&mut self, subscriber: usize, channel: u32, ends: &[u32]) {
        let mut unseen = self.unseen(subscriber, channel, ends);
        self.unseen.append(&mut unseen);
        self.history.leave(subscriber);
        self.counts.departed += 1;
    }

    /// Progress of each publisher of `channel`.
    pub fn ends(&self, channel: u32) -> Vec<u32> {
        let end = |publisher| self.flows.accepted_end(Flow { channel, publisher });
        (0..self.flows.per_channel()).map(end).collect()
    }

    /// Whether the subscriber has reached those ends.
    pub fn is_at(&self, subscriber: usize, ends: &[u32]) -> bool {
        let mut flows = ends.iter().enumerate();
        flows.all(|(flow, end)| self.history.is_at(subscriber, flow, *end))
    }

    /// Judges one item that a subscriber of `channel` received; returns the new position.
    pub fn item(&mut self, subscriber: usize, channel: u32, item: &Item<'_>, now_ns: u64) -> Option<Position> {
        match item {
            Item::Message(message) => return self.message(subscriber, channel, message, now_ns),
            Item::Comment | Item::Ping(_) => self.counts.comments += 1,
            Item::Foreign(bytes) => self.foreign(subscriber, bytes, "bytes that are no part of this format"),
            Item::Close => {}
        }
        None
    }

    fn message(&mut self, subscriber: usize, channel: u32, message: &Message<'_>, now_ns: u64) -> Option<Position> {
        let Some(stamped) = self.messages.read(message.data) else {
            self.foreign(subscriber, message.data, "a text that no publisher of this run sent");
            return None;
        };
        let Mark {
            channel: sent_to,
            publisher,
            sequence,
        } = stamped.mark;
        if sent_to != channel {
            self.foreign(subscriber, message.data, "a message of another channel");
            return None;
        }
        let flow = Flow { channel, publisher };
        if publisher >= self.flows.per_channel() || sequence >= self.flows.sent(flow) {
            self.foreign(subscriber, message.data, "a message that was never sent");
            return None;
        }
        if self.expects_ids {
            self.messages.write_id(&mut self.id, stamped.mark);
            if message.id != Some(self.id.as_bytes()) {
                let id = message.id.unwrap_or_default().to_vec();
                self.foreign(subscriber, &id, "a message with a wrong id");
                return None;
            }
        }
        self.counts.messages += 1;
        self.last_message_ns = now_ns;
        self.latency.record(now_ns.saturating_sub(stamped.due_ns));
        match self.history.observe(subscriber, publisher as usize, sequence) {
            Sighting::Expected => return Some((publisher, sequence)),
            Sighting::Jump(count) => self.problem(subscriber, || {
                format!("channel {channel}, publisher {publisher}: {count} missing before message {sequence}")
            }),
            Sighting::OutOfOrder => {
                self.counts.out_of_order += 1;
                self.problem(subscriber, || {
                    format!("channel {channel}, publisher {publisher}: message {sequence} out of order")
                });
            }
            Sighting::Doubled => {
                self.counts.doubled += 1;
                self.problem(subscriber, || {
                    format!("channel {channel}, publisher {publisher}: message {sequence} once more")
                });
            }
        }
        Some((publisher, sequence))
    }

    /// Adds the unseen messages of the subscribers still present; `channels` are their channels.
    pub fn report(&mut self, channels: impl Iterator<Item = u32>) -> Value {
        for (subscriber, channel) in channels.enumerate() {
            let mut unseen = self.unseen(subscriber, channel, &self.ends(channel));
            self.unseen.append(&mut unseen);
        }
        let counts = &self.counts;
        json!({
            "wire_bytes": counts.wire_bytes,
            "messages": counts.messages,
            "comments": counts.comments,
            "foreign": counts.foreign,
            "doubled": counts.doubled,
            "out_of_order": counts.out_of_order,
            "refused": counts.refused,
            "malformed": counts.malformed,
            "disconnects": counts.disconnects,
            "excused": counts.excused,
            "reconnects": counts.reconnects,
            "failed_connects": counts.failed_connects,
            "opened": counts.opened,
            "departed": counts.departed,
            "last_message_ns": self.last_message_ns,
            "latency": self.latency.to_json(),
            "opening": self.opening.to_json(),
            "unseen": self.unseen,
            "problems": self.problems,
        })
    }

    fn unseen(&self, subscriber: usize, channel: u32, ends: &[u32]) -> Vec<Value> {
        let entry = |(publisher, end): (usize, &u32)| {
            let ranges: Vec<Range<u32>> = self.history.unseen(subscriber, publisher, *end);
            let pairs: Vec<_> = ranges.iter().map(|range| [range.start, range.end]).collect();
            let publisher = publisher as u32;
            (!ranges.is_empty()).then(|| {
                json!({
                    "subscriber": self.first + subscriber,
                    "flow": self.flows.index(Flow { channel, publisher }),
                    "ranges": pairs,
                })
            })
        };
        ends.iter().enumerate().filter_map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Stamped;

    /// A checker for one subscriber of channel 0, to which three messages were sent after it had joined.
    fn checker() -> Checker {
        let flows = Flows::new(2, 1).unwrap();
        let mut checker = Checker::new(0, 1, flows, Messages::new(1, crate::text::Kind::Noise, 200), true);
        checker.join(0, 0);
        for channel in [0, 1] {
            let flow = Flow { channel, publisher: 0 };
            flows.sending(flow, 2);
            flows.accepted(flow, 2);
        }
        checker
    }

    /// The subscriber of channel 0 receives a message of `channel` with the id of message `id`.
    fn receive(checker: &mut Checker, channel: u32, sequence: u32, id: u32) -> Option<Position> {
        let mut text = Vec::new();
        let mark = Mark {
            channel,
            publisher: 0,
            sequence,
        };
        checker.messages.write(&mut text, Stamped { mark, due_ns: 5 }, 150);
        let mut written = String::new();
        checker.messages.write_id(&mut written, Mark { sequence: id, ..mark });
        let message = Message {
            id: Some(written.as_bytes()),
            data: &text,
        };
        checker.item(0, 0, &Item::Message(message), 10)
    }

    #[test]
    fn what_should_come_is_counted_and_moves_the_position() {
        let mut checker = checker();
        assert_eq!(receive(&mut checker, 0, 0, 0), Some((0, 0)));
        assert_eq!(receive(&mut checker, 0, 1, 1), Some((0, 1)));
        assert_eq!(
            (checker.counts.messages, checker.counts.foreign, checker.latency.count()),
            (2, 0, 2)
        );
        assert!(checker.problems.is_empty());
    }

    #[test]
    fn everything_foreign_is_noticed() {
        let mut checker = checker();
        assert_eq!(receive(&mut checker, 1, 0, 0), None, "a message of another channel");
        assert_eq!(receive(&mut checker, 0, 3, 3), None, "a message that was never sent");
        assert_eq!(receive(&mut checker, 0, 0, 1), None, "a message with the id of another");
        let text = Message {
            id: None,
            data: b"hello",
        };
        assert_eq!(checker.item(0, 0, &Item::Message(text), 10), None);
        assert_eq!(checker.item(0, 0, &Item::Foreign(b"<html>"), 10), None);
        assert_eq!(
            (checker.counts.foreign, checker.counts.messages, checker.problems.len()),
            (5, 0, 5)
        );
    }

    #[test]
    fn lost_doubled_and_reordered_messages_are_noticed() {
        let mut checker = checker();
        receive(&mut checker, 0, 2, 2);
        receive(&mut checker, 0, 0, 0);
        receive(&mut checker, 0, 0, 0);
        assert_eq!((checker.counts.out_of_order, checker.counts.doubled), (1, 1));
        assert_eq!(checker.problems.len(), 3);
        let report = checker.report([0].into_iter());
        assert_eq!(
            report["unseen"],
            json!([{"subscriber": 0, "flow": 0, "ranges": [[1, 2]]}])
        );
    }

    #[test]
    fn what_a_visitor_had_not_seen_is_kept_and_what_came_later_is_not_its_business() {
        let mut checker = checker();
        receive(&mut checker, 0, 0, 0);
        assert!(!checker.is_at(0, &[2]) && checker.is_at(0, &[1]));
        checker.leave(0, 0, &[2]);
        let report = checker.report([0].into_iter());
        assert_eq!(
            report["unseen"],
            json!([{"subscriber": 0, "flow": 0, "ranges": [[1, 2]]}])
        );
        assert_eq!(report["departed"], 1);
    }
}
