//! `stdin`: one event per line of standard input.
//!
//! ```toml
//! lines = { type = "stdin" }
//! ```
//!
//! Best effort: a pipe cannot be reread. When the input ends and everything is delivered, a worker without other
//! sources ends, too.

use std::io::{self, BufRead};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Context, Guarantee, Kind, Limits, Run, Source, next_epoch};
use crate::clock::Timestamp;
use crate::config::section::Section;
use crate::event::{Event, EventId};
use crate::finalizer::{AckTo, Handle};

pub const KIND: Kind = Kind {
    name: "stdin",
    about: "one event per line of standard input (best effort)",
    read,
};

/// Lines between the reading thread and the source. They are not in flight yet.
const READ_AHEAD: usize = 256;

pub struct Stdin {
    limits: Limits,
}

fn read(section: &Section<'_>) -> Option<Box<dyn Source>> {
    Some(Box::new(Stdin {
        limits: Limits::read(section),
    }))
}

impl Source for Stdin {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::BestEffort
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move {
            let epoch = next_epoch(&context)?;
            let (lines, mut receiver) = mpsc::channel(READ_AHEAD);
            // A blocking read of standard input cannot be interrupted, so its thread is left behind at a stop.
            std::thread::Builder::new()
                .name("stdin".to_owned())
                .spawn(move || read_lines(io::stdin().lock(), &lines))?;
            tracing::info!("source {}: reading standard input", context.name);

            let Context { feed, mut stop, .. } = context;
            let mut seq = 0;
            loop {
                let line = tokio::select! {
                    line = receiver.recv() => line,
                    () = stop.requested() => None,
                };
                let Some(line) = line.transpose()? else { break };
                let permit = tokio::select! {
                    permit = feed.credit().reserve(line.len()) => permit,
                    () = stop.requested() => break,
                };
                seq += 1;
                let event = Event::new(EventId::new(epoch, seq), Timestamp::now(), line);
                feed.emit(event, Handle::new(seq, AckTo::Nobody, Some(permit)));
            }
            feed.drained(&mut stop).await;
            Ok(())
        })
    }
}

fn read_lines(mut input: impl BufRead, lines: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut line = Vec::new();
        let result = match input.read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => Ok(Bytes::copy_from_slice(line.trim_ascii_end())),
            Err(error) => Err(error),
        };
        if result.as_ref().is_ok_and(Bytes::is_empty) {
            continue;
        }
        let failed = result.is_err();
        if lines.blocking_send(result).is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_without_their_ends_and_empty_ones_not_at_all() {
        let (sender, mut receiver) = mpsc::channel(10);
        read_lines(&b"a\r\n\n  \nb"[..], &sender);
        drop(sender);
        let lines: Vec<_> = std::iter::from_fn(|| receiver.try_recv().ok())
            .map(Result::unwrap)
            .collect();
        assert_eq!(lines, ["a", "b"]);
    }
}
