//! Random histories against a simple reference model.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use push_stream_core::store::*;

use crate::zone::*;

const WORKERS: usize = 3;
const MAX_STORED: usize = 3;
const WINDOW: usize = 3;

#[derive(Clone, Debug)]
enum Action {
    Publish {
        worker: usize,
        channels: Vec<u8>,
        len: usize,
        store: bool,
    },
    /// With an id that each channel accepts once.
    PublishOnce {
        worker: usize,
        channels: Vec<u8>,
        id: u8,
    },
    Follow {
        worker: usize,
        channels: Vec<u8>,
    },
    Leave {
        worker: usize,
        which: usize,
    },
    Drain {
        worker: usize,
        max_bytes: usize,
    },
    Delete {
        worker: usize,
        channel: u8,
    },
    Backtrack {
        worker: usize,
        channel: u8,
        count: u32,
    },
    Tick {
        worker: usize,
        secs: u64,
    },
}

fn actions() -> impl Strategy<Value = Action> {
    let worker = 0..WORKERS;
    let channels = prop::collection::vec(0..5u8, 1..7);
    prop_oneof![
        6 => (worker.clone(), channels.clone(), 0..600usize, any::<bool>())
            .prop_map(|(worker, channels, len, store)| Action::Publish { worker, channels, len, store }),
        4 => (worker.clone(), channels.clone(), 0..9u8)
            .prop_map(|(worker, channels, id)| Action::PublishOnce { worker, channels, id }),
        3 => (worker.clone(), channels).prop_map(|(worker, channels)| Action::Follow { worker, channels }),
        2 => (worker.clone(), 0..4usize).prop_map(|(worker, which)| Action::Leave { worker, which }),
        4 => (worker.clone(), 0..2000usize).prop_map(|(worker, max_bytes)| Action::Drain { worker, max_bytes }),
        1 => (worker.clone(), 0..5u8).prop_map(|(worker, channel)| Action::Delete { worker, channel }),
        2 => (worker.clone(), 0..5u8, 0..5u32)
            .prop_map(|(worker, channel, count)| Action::Backtrack { worker, channel, count }),
        1 => (worker, 0..40u64).prop_map(|(worker, secs)| Action::Tick { worker, secs }),
    ]
}

/// A worker's untaken messages of a channel: texts, and the notice of its deletion at the end.
type Inbox = VecDeque<String>;

#[derive(Default)]
struct Model {
    /// Stored texts and the second in which they expire.
    stored: BTreeMap<u8, VecDeque<(String, u64)>>,
    published: BTreeMap<u8, u64>,
    /// Accepted ids, the oldest first.
    windows: BTreeMap<u8, VecDeque<u8>>,
    /// Per worker and membership.
    inboxes: [BTreeMap<Membership, Inbox>; WORKERS],
    /// The membership of each worker in each living channel.
    follows: [BTreeMap<u8, Membership>; WORKERS],
    subscribers: [Vec<Joined>; WORKERS],
}

impl Model {
    fn publish(&mut self, channel: u8, text: &str, store: bool, now: Now) {
        *self.published.entry(channel).or_default() += 1;
        if store {
            let stored = self.stored.entry(channel).or_default();
            stored.push_back((text.to_string(), now.unix_secs() + 20));
            if stored.len() > MAX_STORED {
                stored.pop_front();
            }
        }
        for (follows, inboxes) in self.follows.iter().zip(&mut self.inboxes) {
            if let Some(membership) = follows.get(&channel) {
                inboxes.get_mut(membership).unwrap().push_back(text.to_string());
            }
        }
    }

    /// True if the channel has already accepted the id.
    fn is_known(&mut self, channel: u8, id: u8) -> bool {
        let window = self.windows.entry(channel).or_default();
        if window.contains(&id) {
            return true;
        }
        window.push_back(id);
        if window.len() > WINDOW {
            window.pop_front();
        }
        false
    }
}

fn run(history: Vec<Action>) {
    let mut test = TestZone::new(2048);
    let limits = Limits {
        max_stored_per_channel: Some(MAX_STORED as u32),
        message_ttl_secs: 20,
        channel_inactivity_secs: 1_000_000,
        idempotent_window: WINDOW as u32,
        ..tracking()
    };
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| test.worker_with(&limits)).collect();
    let mut model = Model::default();
    let mut batch = Batch::default();
    for (number, action) in history.into_iter().enumerate() {
        match action {
            Action::Publish {
                worker,
                channels,
                len,
                store,
            } => {
                let text = format!("{number}:{}", "x".repeat(len));
                let ids: Vec<&[u8]> = channels.iter().map(std::slice::from_ref).collect();
                let request = Post {
                    ids: &ids,
                    text: text.as_bytes(),
                    event_id: None,
                    store,
                };
                let published = post(&mut workers[worker], request, &limits, test.now).unwrap();
                assert_eq!(published.len(), channels.len());
                for channel in channels {
                    model.publish(channel, &text, store, test.now);
                }
            }
            Action::PublishOnce { worker, channels, id } => {
                let text = number.to_string();
                let ids: Vec<&[u8]> = channels.iter().map(std::slice::from_ref).collect();
                let how = Terms {
                    idempotent: true,
                    ..Terms::plain(true)
                };
                // Some are ordered, some are not.
                let event_id = if id % 2 == 0 {
                    format!("{id}")
                } else {
                    format!("id {id}")
                };
                let worker = &mut workers[worker];
                let draft = worker.draft(text.len(), Some(event_id.as_bytes()), None, ids.len(), test.now);
                let mut draft = draft.unwrap();
                worker.write(&mut draft, text.as_bytes());
                let published = worker.publish(draft, &ids, how, test.now).unwrap();
                for (&channel, published) in channels.iter().zip(&published) {
                    let known = model.is_known(channel, id);
                    assert_eq!(published.duplicate, known, "id {id} in channel {channel}");
                    if !known {
                        model.publish(channel, &text, true, test.now);
                    }
                }
            }
            Action::Follow { worker, channels } => {
                let paths: Vec<_> = channels
                    .iter()
                    .map(|id| JoinChannel {
                        id: std::slice::from_ref(id),
                        backtrack: 0,
                    })
                    .collect();
                let join = request(&paths, Position::default(), JoinMode::Stream);
                let joined = workers[worker].join(&join, test.now).unwrap();
                for (channel, &membership) in channels.iter().zip(&joined.memberships) {
                    model.published.entry(*channel).or_default();
                    model.follows[worker].insert(*channel, membership);
                    model.inboxes[worker].entry(membership).or_default();
                }
                model.subscribers[worker].push(joined);
            }
            Action::Leave { worker, which } => {
                if which < model.subscribers[worker].len() {
                    let gone = model.subscribers[worker].swap_remove(which);
                    workers[worker].leave(&gone.memberships, true);
                    for membership in gone.memberships {
                        let others = model.subscribers[worker]
                            .iter()
                            .any(|other| other.memberships.contains(&membership));
                        if !others {
                            model.inboxes[worker].remove(&membership);
                            model.follows[worker].retain(|_, followed| *followed != membership);
                        }
                    }
                }
            }
            Action::Drain { worker, max_bytes } => {
                let more = workers[worker].drain(max_bytes, &mut batch);
                for (source, message) in batch.iter() {
                    let inbox = model.inboxes[worker]
                        .get_mut(&Membership(source))
                        .expect("a membership that it has");
                    let expected = inbox.pop_front().expect("nothing comes twice");
                    assert_eq!(String::from_utf8_lossy(message.text), expected);
                    assert_eq!(message.kind == MessageKind::Deleted, expected.starts_with("deleted"));
                }
                if !more {
                    assert!(
                        model.inboxes[worker].values().all(VecDeque::is_empty),
                        "nothing is left behind"
                    );
                }
            }
            Action::Delete { worker, channel } => {
                let notice = format!("deleted {number}");
                let count = workers[worker]
                    .delete(&[&[channel]], notice.as_bytes(), test.now)
                    .unwrap();
                assert_eq!(count == 1, model.published.remove(&channel).is_some());
                model.stored.remove(&channel);
                model.windows.remove(&channel);
                for (follows, inboxes) in model.follows.iter_mut().zip(&mut model.inboxes) {
                    if let Some(membership) = follows.remove(&channel) {
                        inboxes.get_mut(&membership).unwrap().push_back(notice.clone());
                    }
                }
            }
            Action::Backtrack { worker, channel, count } => {
                let paths = [JoinChannel {
                    id: &[channel],
                    backtrack: count,
                }];
                let join = request(&paths, Position::default(), JoinMode::Poll);
                let joined = workers[worker].join(&join, test.now).unwrap();
                model.published.entry(channel).or_default();
                let mut texts = Vec::new();
                if let Some(mut replay) = joined.replay {
                    while workers[worker].replay(&mut replay, &mut batch) {}
                    texts.extend(
                        batch
                            .iter()
                            .map(|(_, message)| String::from_utf8_lossy(message.text).into_owned()),
                    );
                }
                let stored = model.stored.entry(channel).or_default();
                let skip = stored.len().saturating_sub(count as usize);
                assert_eq!(
                    texts,
                    stored
                        .iter()
                        .skip(skip)
                        .map(|(text, _)| text.clone())
                        .collect::<Vec<_>>()
                );
            }
            Action::Tick { worker, secs } => {
                test.tick(&mut workers[worker], secs);
                workers[worker].tick(test.now);
                for stored in model.stored.values_mut() {
                    stored.retain(|(_, expires)| *expires > test.now.unix_secs());
                }
            }
        }
        test.assert_whole();
        for (&channel, &published) in &model.published {
            let info = workers[0].channel(&[channel]).expect("it exists");
            let stored = model.stored.get(&channel).map_or(0, |stored| stored.len());
            let paths = model
                .subscribers
                .iter()
                .zip(&model.follows)
                .flat_map(|(subscribers, follows)| {
                    let membership = follows.get(&channel);
                    subscribers
                        .iter()
                        .flat_map(|joined| &joined.memberships)
                        .filter(move |found| Some(*found) == membership)
                });
            let expected = ChannelInfo {
                published,
                stored: stored as u64,
                subscribers: paths.count() as u64,
            };
            assert_eq!(info, expected, "channel {channel}");
        }
        let connected: usize = model.subscribers.iter().map(Vec::len).sum();
        assert_eq!(workers[0].summary(test.now).subscribers, connected as u64);
    }
    for worker in workers {
        worker.release();
    }
    test.assert_whole();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_as_the_model_says(history in prop::collection::vec(actions(), 1..80)) {
        run(history);
    }
}
