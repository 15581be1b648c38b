//! `redis_pubsub`: Redis pub/sub, at most once.
//!
//! ```toml
//! live = { type = "redis_pubsub", url = "redis://127.0.0.1:6379/0", channels = ["posts"], patterns = ["forum.*"] }
//! ```
//!
//! Best effort: Redis stores nothing. Messages sent while the worker is not subscribed, or faster than they are
//! published, are lost; there are no acknowledgements, and ids begin anew with each start. For data that is worthless a
//! second later.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use super::trouble::Trouble;
use super::{Context, Guarantee, Kind, Limits, Run, Source, next_epoch};
use crate::clock::Timestamp;
use crate::config::section::Section;
use crate::engine::stop::Stop;
use crate::event::{Event, EventId};
use crate::finalizer::{AckTo, Handle};
use crate::redis_link::{Server, describe_error};

pub const KIND: Kind = Kind {
    name: "redis_pubsub",
    about: "messages of Redis channels (best effort)",
    read,
};

pub struct RedisPubSub {
    server: Server,
    channels: Vec<String>,
    patterns: Vec<String>,
    limits: Limits,
}

fn read(section: &Section<'_>) -> Option<Box<dyn Source>> {
    let server = Server::read(section);
    let channels: Vec<String> = section.or("channels", Vec::new());
    let patterns: Vec<String> = section.or("patterns", Vec::new());
    if channels.is_empty() && patterns.is_empty() {
        section.complain("needs channels or patterns");
    }
    Some(Box::new(RedisPubSub {
        server: server?,
        channels,
        patterns,
        limits: Limits::read(section),
    }))
}

impl Source for RedisPubSub {
    fn examine(&self) -> Option<super::Examination<'_>> {
        Some(Box::pin(self.server.examine(false)))
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::BestEffort
    }

    fn may_block(&self) -> bool {
        false
    }

    fn starts_ready(&self) -> bool {
        false
    }

    fn run(self: Box<Self>, context: Context) -> Run {
        Box::pin(async move {
            let epoch = next_epoch(&context)?;
            let mut stop = context.stop.clone();
            let mut seq = 0;
            let mut trouble = Trouble::default();
            while !stop.is_requested() {
                let Err(error) = self
                    .listen(&context, &mut stop.clone(), epoch, &mut seq, &mut trouble)
                    .await
                else {
                    break;
                };
                context.feed.gauges().set_ready(false);
                trouble.tell(&context.name, error, "what is said meanwhile is lost");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(fastrand::u64(200..1000))) => {}
                    () = stop.requested() => {}
                }
            }
            context.feed.drained(&mut stop).await;
            Ok(())
        })
    }
}

impl RedisPubSub {
    async fn listen(
        &self,
        context: &Context,
        stop: &mut Stop,
        epoch: u64,
        seq: &mut u64,
        trouble: &mut Trouble,
    ) -> Result<(), String> {
        let mut subscriber = self.server.subscribe().await?;
        for channel in &self.channels {
            subscriber.subscribe(channel).await.map_err(describe_error)?;
        }
        for pattern in &self.patterns {
            subscriber.psubscribe(pattern).await.map_err(describe_error)?;
        }
        tracing::info!(
            "source {}: listening to {} channels and {} patterns",
            context.name,
            self.channels.len(),
            self.patterns.len()
        );
        trouble.is_over();
        context.feed.gauges().set_ready(true);
        let mut messages = subscriber.on_message();
        loop {
            let message = tokio::select! {
                () = stop.requested() => return Ok(()),
                message = messages.next() => message.ok_or_else(|| "the connection to Redis is lost".to_owned())?,
            };
            let raw = Bytes::copy_from_slice(message.get_payload_bytes());
            let permit = tokio::select! {
                () = stop.requested() => return Ok(()),
                permit = context.feed.credit().reserve(raw.len()) => permit,
            };
            *seq += 1;
            let event = Event::new(EventId::new(epoch, *seq), Timestamp::now(), raw);
            context.feed.emit(event, Handle::new(*seq, AckTo::Nobody, Some(permit)));
        }
    }
}
