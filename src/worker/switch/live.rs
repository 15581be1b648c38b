//! `[switch.*]` and `[switches]`: all switches of a configuration, and the Redis hash that changes them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::{State, Status, Switch};
use crate::config::section::Section;
use crate::field::FieldPath;
use crate::redis_link::{Server, describe_error};

/// The hash is reread after this time even without a nudge.
const REFRESH: Duration = Duration::from_secs(5);

/// `[switch.*]`: the initial state, and the field that tells events apart.
pub fn read(section: &Section<'_>) -> (State, Option<FieldPath>) {
    let words = [
        ("off", Status::Off),
        ("on", Status::On),
        ("selective", Status::Selective),
    ];
    let percent = section.or("percent", 0_usize);
    if percent > 100 {
        section.complain_at("percent", "must be from 0 to 100");
    }
    let by = section.optional("by");
    let state = State {
        status: section.choice("status", &words, Status::Off),
        percent: percent as f64,
        include: section.or("include", Vec::new()),
        exclude: section.or("exclude", Vec::new()),
        value: section.optional("value"),
    };
    if state.status == Status::Selective && by.is_none() {
        section.complain_at("status", "\"selective\" needs a field: by = \"…\"");
    }
    (state, by)
}

/// All switches of a configuration, and the Redis hash that changes them live.
#[derive(Debug, Default)]
pub struct Switches {
    pub all: BTreeMap<String, Arc<Switch>>,
    pub live: Option<Live>,
}

/// `[switches]`
#[derive(Clone, Debug)]
pub struct Live {
    pub server: Server,
    pub key: String,
}

impl Live {
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let server = Server::read(section);
        Some(Self {
            key: section.or("key", "glue.switches".to_owned()),
            server: server?,
        })
    }
}

impl Switches {
    /// Follows the hash while polled.
    pub async fn follow(self: Arc<Self>) {
        let Some(live) = &self.live else { return };
        let mut is_away = false;
        loop {
            let Err(error) = self.follow_connection(live).await else {
                continue;
            };
            if !std::mem::replace(&mut is_away, true) {
                tracing::warn!("switches: {error}; they stay as they are");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn follow_connection(&self, live: &Live) -> Result<(), String> {
        let mut nudges = live.server.subscribe().await?;
        nudges.subscribe(&live.key).await.map_err(describe_error)?;
        let mut connection = live.server.connect().await?;
        let mut nudges = nudges.on_message();
        loop {
            let fields: BTreeMap<String, String> = redis::cmd("HGETALL")
                .arg(&live.key)
                .query_async(&mut connection)
                .await
                .map_err(describe_error)?;
            self.apply(&fields);
            // Reread the hash after a nudge, and periodically without one.
            if let Ok(None) = tokio::time::timeout(REFRESH, nudges.next()).await {
                return Err("the connection to Redis is lost".to_owned());
            }
        }
    }

    fn apply(&self, fields: &BTreeMap<String, String>) {
        for (name, switch) in &self.all {
            let base = switch.file.read().clone();
            match fields.get(name).map_or(Ok(None), |text| State::parse(text, &base)) {
                Ok(state) => switch.set_live(state),
                Err(error) => tracing::error!("switch {name}: {error}; it stays as it is"),
            }
        }
    }
}
