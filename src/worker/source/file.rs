//! `file`: one event per line of a growing NDJSON file.
//!
//! ```toml
//! comments = { type = "file", path = "/var/log/app/comments.ndjson", start = "beginning" }
//! ```
//!
//! At least once: the position up to which every event is settled is stored durably, and only then does an event cease
//! to be in flight. After a crash at most `max_in_flight` events come again, with the same ids. For rotation,
//! truncation and unfinished lines see [`follow`](super::follow).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::follow::{Follower, Place, Position, Start, Step};
use super::{Context, Guarantee, Kind, Limits, Run, Source};
use crate::checkpoint::{self, Checkpointer};
use crate::clock::Timestamp;
use crate::config::section::Section;
use crate::config::value::ByteSize;
use crate::credit::Permit;
use crate::engine::dead_letter::Reason;
use crate::engine::feed::Feed;
use crate::engine::stop::Stop;
use crate::event::{Event, EventId};
use crate::finalizer::{Ack, AckTo, Handle};
use crate::watermark::Watermark;

pub const KIND: Kind = Kind {
    name: "file",
    about: "follows a growing NDJSON file, durably",
    read,
};

/// Pause after a read error.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// Lines between two checks for acknowledgements.
const BURST: usize = 64;

pub struct FileSource {
    /// The file; it need not exist yet.
    path: PathBuf,
    /// Where a worker without a checkpoint starts: `"beginning"` (default) or `"end"`.
    start: Start,
    /// Polling interval of a quiet file.
    poll: Duration,
    /// How long a rotated file must be quiet before its successor is read.
    rotate_wait: Duration,
    /// A longer line is parked, truncated.
    max_line: usize,
    limits: Limits,
}

fn read(section: &Section<'_>) -> Option<Box<dyn Source>> {
    let path = section.required("path");
    let start = section.choice(
        "start",
        &[("beginning", Start::Beginning), ("end", Start::End)],
        Start::Beginning,
    );
    let poll = section.or("poll", Duration::from_millis(10));
    let rotate_wait = section.or("rotate_wait", Duration::from_secs(1));
    let ByteSize(max_line) = section.or("max_line", ByteSize(1 << 20));
    let limits = Limits::read(section);
    if poll.is_zero() {
        section.complain_at("poll", "must be longer than 0");
    }
    if max_line == 0 {
        section.complain_at("max_line", "must be at least 1B");
    }
    Some(Box::new(FileSource {
        path: path?,
        start,
        poll,
        rotate_wait,
        max_line,
        limits,
    }))
}

/// What survives a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Checkpoint {
    /// Epoch of all ids of this source.
    epoch: u64,
    /// Number of the last event that is settled together with all before it.
    seq: u64,
    path: PathBuf,
    /// `None` until the file exists.
    position: Option<Position>,
}

/// A [`Checkpoint`] before hashing: only the few that are stored are hashed.
#[derive(Clone, Debug)]
struct Mark {
    seq: u64,
    place: Place,
}

impl Source for FileSource {
    fn reads(&self) -> Option<crate::config::endpoint::Endpoint> {
        Some(crate::config::endpoint::Endpoint::File(self.path.clone()))
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move {
            let mut stop = context.stop.clone();
            let mut running = Running::start(&self, context)?;
            running.read_until_stopped(&self, &mut stop).await;
            running.drain(&mut stop).await;
            Ok(())
        })
    }
}

struct Running {
    name: String,
    epoch: u64,
    /// Number of the last event claimed.
    seq: u64,
    follower: Follower,
    feed: Feed,
    marks: Watermark<Mark>,
    acks: mpsc::UnboundedReceiver<Ack>,
    ack_to: mpsc::UnboundedSender<Ack>,
    checkpointer: Checkpointer<Checkpoint>,
    failing: bool,
}

/// A line that waits for credit.
struct Line {
    event: Event,
    too_long: bool,
    mark: Mark,
}

impl Running {
    fn start(config: &FileSource, context: Context) -> io::Result<Self> {
        let Context {
            name, state_dir, feed, ..
        } = context;
        let file = state_dir.join(format!("{name}.checkpoint.json"));
        let checkpoint = match checkpoint::load::<Checkpoint>(&file)? {
            Some(checkpoint) => checkpoint,
            None => Checkpoint {
                epoch: Timestamp::now().0,
                seq: 0,
                path: config.path.clone(),
                position: None,
            },
        };
        // The epoch must not change after the first event has gone out.
        checkpoint::store(&file, &checkpoint)?;
        let position = checkpoint.position.as_ref().filter(|_| checkpoint.path == config.path);
        let follower = Follower::new(
            config.path.clone(),
            position,
            config.start,
            config.max_line,
            config.rotate_wait,
        );
        let (path, seq) = (config.path.display(), checkpoint.seq);
        match position {
            Some(position) => tracing::info!(
                "source {name}: following {path} from byte {}, event {seq}",
                position.offset
            ),
            None => tracing::info!("source {name}: following {path} from the {:?}", config.start),
        }
        let (ack_to, acks) = mpsc::unbounded_channel();
        Ok(Self {
            checkpointer: Checkpointer::spawn(&name, file, |_| ())?,
            name,
            epoch: checkpoint.epoch,
            seq,
            follower,
            feed,
            marks: Watermark::new(),
            acks,
            ack_to,
            failing: false,
        })
    }

    async fn read_until_stopped(&mut self, config: &FileSource, stop: &mut Stop) {
        let mut waiting = None;
        while !stop.is_requested() {
            self.settle();
            self.feed.gauges().set_lag_bytes(self.follower.lag_bytes());
            let pause = self.read_burst(&mut waiting, config.poll);
            if pause.is_zero() {
                continue;
            }
            let credit = Arc::clone(self.feed.credit());
            let wanted = waiting.as_ref().map(|line: &Line| line.event.raw.len());
            tokio::select! {
                biased;
                () = stop.requested() => {}
                Some(ack) = self.acks.recv() => self.note(ack),
                permit = credit.reserve(wanted.unwrap_or(0)), if wanted.is_some() => {
                    if let Some(line) = waiting.take() {
                        self.emit(line, permit);
                    }
                }
                () = tokio::time::sleep(pause), if wanted.is_none() => {}
            }
        }
    }

    /// Sends as many lines as credit allows. A line without credit stays in `waiting`; otherwise the result is the
    /// pause before the next poll.
    fn read_burst(&mut self, waiting: &mut Option<Line>, poll: Duration) -> Duration {
        for _ in 0..BURST {
            let line = match waiting.take().map_or_else(|| self.next_line(), |line| Ok(Some(line))) {
                Ok(Some(line)) => line,
                Ok(None) => {
                    self.failing = false;
                    return poll;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!(
                            "source {}: cannot read {}: {error}; will try again",
                            self.name,
                            self.follower.path().display()
                        );
                    }
                    return ERROR_PAUSE.max(poll);
                }
            };
            match self.feed.credit().try_reserve_one(line.event.raw.len()) {
                Some(permit) => self.emit(line, permit),
                None => {
                    *waiting = Some(line);
                    return poll;
                }
            }
        }
        Duration::ZERO
    }

    fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            match self.follower.poll()? {
                Step::Idle => return Ok(None),
                Step::Moved(place) => self.marks.mark(Mark { seq: self.seq, place }),
                Step::Line { text, too_long, place } => {
                    self.seq += 1;
                    let event = Event::new(EventId::new(self.epoch, self.seq), Timestamp::now(), text);
                    return Ok(Some(Line {
                        event,
                        too_long,
                        mark: Mark { seq: self.seq, place },
                    }));
                }
            }
        }
    }

    fn emit(&mut self, line: Line, permit: Permit) {
        let Line { event, too_long, mark } = line;
        let ticket = self.marks.begin(mark, permit);
        let handle = Handle::new(ticket, AckTo::Queue(self.ack_to.clone()), None);
        if too_long {
            let text = format!(
                "the line is longer than {} bytes; this is its beginning",
                event.raw.len()
            );
            self.feed.park(
                &event,
                &Reason {
                    component: "source".to_owned(),
                    text,
                    attempts: 1,
                },
                handle,
            );
        } else {
            self.feed.emit(event, handle);
        }
    }

    fn note(&mut self, ack: Ack) {
        if ack.outcome.is_settled() {
            self.marks.finish(ack.ticket);
        }
    }

    /// Moves the checkpoint to the end of the settled prefix.
    fn settle(&mut self) {
        while let Ok(ack) = self.acks.try_recv() {
            self.note(ack);
        }
        if let Some(advance) = self.marks.advance() {
            let Mark { seq, place } = advance.position;
            let checkpoint = Checkpoint {
                epoch: self.epoch,
                seq,
                path: self.follower.path().to_owned(),
                position: Some(place.position()),
            };
            self.checkpointer.submit(checkpoint, advance.permits);
        }
    }

    /// Waits until all claimed events are settled, or draining is abandoned.
    async fn drain(&mut self, stop: &mut Stop) {
        self.settle();
        while !self.marks.is_empty() {
            tokio::select! {
                Some(ack) = self.acks.recv() => self.note(ack),
                () = stop.abandoned() => return,
            }
            self.settle();
        }
    }
}
