//! The channels that a request names.

use std::ops::Range;

use ngx::ffi::ngx_cycle;
use push_stream_core::store::{ChannelInfo, Now, Summary, Worker};
use push_stream_core::wire::channel_path::{self, Segment};
use push_stream_core::wire::statistics::{self, Format, GroupWriter};
use smallvec::SmallVec;

use super::denial::Denial;
use super::request::Request;
use crate::config::Settings;

/// The decoded channels path of a request.
pub struct Path {
    text: Vec<u8>,
    /// The ranges of the ids in it, each with its backtrack.
    segments: SmallVec<[(Range<usize>, u32); 2]>,
}

impl Path {
    /// Evaluates `push_stream_channels_path`. An unset or empty one names no channel.
    pub fn of(r: Request<'_>) -> Result<Path, Denial> {
        let text = r.value(r.location().channels_path)?.unwrap_or_default();
        let place = |segment: Segment<'_>| {
            let start = segment.id.as_ptr().addr() - text.as_ptr().addr();
            (start..start + segment.id.len(), segment.backtrack)
        };
        let segments = channel_path::parse(&text).map(place).collect();
        Ok(Path { text, segments })
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub fn segments(&self) -> impl ExactSizeIterator<Item = Segment<'_>> {
        self.segments.iter().map(|(place, backtrack)| Segment {
            id: &self.text[place.clone()],
            backtrack: *backtrack,
        })
    }

    /// The id of the `index`th segment; empty if there is none.
    pub fn id(&self, index: usize) -> &[u8] {
        self.segments
            .get(index)
            .map_or(&[], |(place, _)| &self.text[place.clone()])
    }

    /// The ids without their backtracks.
    pub fn ids(&self) -> SmallVec<[&[u8]; 2]> {
        self.segments().map(|segment| segment.id).collect()
    }

    /// Checks the ids in order: each by `check`, and by `admit` whether the store accepts those before the first that
    /// `check` refuses, or all of them. The error of an earlier channel comes first.
    pub fn judge(
        &self,
        check: impl Fn(&[u8]) -> Result<(), Denial>,
        admit: impl FnOnce(usize) -> Result<(), Denial>,
    ) -> Result<(), Denial> {
        if self.is_empty() {
            return Err(Denial::NoChannelId);
        }
        let mut sound = 0;
        let refused = self.segments().map(|segment| check(segment.id)).find(|checked| {
            sound += usize::from(checked.is_ok());
            checked.is_err()
        });
        admit(sound)?;
        refused.unwrap_or(Ok(()))
    }
}

/// Check for publishers and subscribers alike: the id is allowed and not too long.
pub fn check_id(id: &[u8], settings: &Settings) -> Result<(), Denial> {
    if channel_path::is_reserved(id) {
        return Err(Denial::ReservedChannelId);
    }
    check_length(id, settings)
}

/// The store counts an id's bytes in 16 bits.
const LONGEST_ID: usize = u16::MAX as usize;

/// Checks `push_stream_max_channel_id_length`.
pub fn check_length(id: &[u8], settings: &Settings) -> Result<(), Denial> {
    if id.len() > settings.max_channel_id_length.unwrap_or(LONGEST_ID).min(LONGEST_ID) {
        return Err(Denial::ChannelIdTooLong);
    }
    Ok(())
}

/// A channel's figures with its id.
pub fn figures(id: &[u8], info: ChannelInfo) -> statistics::Channel<'_> {
    statistics::Channel {
        id,
        published: info.published,
        stored: info.stored,
        subscribers: info.subscribers,
    }
}

/// The figures of one channel in the single form, of several in the group form.
pub fn write_figures(format: Format, worker: &Worker, now: Now, channels: &[(&[u8], ChannelInfo)]) -> Vec<u8> {
    let mut out = Vec::new();
    if let [(id, info)] = channels {
        statistics::channel(format, &figures(id, *info), &mut out);
        return out;
    }
    let mut group = start_group(format, &worker.summary(now), now, &mut out);
    for (id, info) in channels {
        group.channel(&figures(id, *info), &mut out);
    }
    group.finish(&mut out);
    out
}

/// Writes the head of a group.
pub fn start_group(format: Format, summary: &Summary, now: Now, out: &mut Vec<u8>) -> GroupWriter {
    let group = statistics::Group {
        hostname: hostname(),
        time: now.unix_secs(),
        channels: summary.channels,
        wildcard_channels: summary.wildcard_channels,
        uptime: summary.uptime_secs,
    };
    GroupWriter::start(format, &group, out)
}

/// This machine's name as nginx knows it.
pub fn hostname() -> &'static [u8] {
    // SAFETY: a running process has a cycle, and its strings live as long as the cycle; the answer is written before
    // the process can take up another one.
    unsafe { (*ngx_cycle).hostname.into() }
}

/// A path without the events channel.
pub fn changeable_path(r: Request<'_>) -> Result<Path, Denial> {
    let (path, settings) = (Path::of(r)?, r.settings()?);
    path.judge(|id| check_changeable(id, settings), |_| Ok(()))?;
    Ok(path)
}

/// Checks the id of a channel that a request may change.
pub fn check_changeable(id: &[u8], settings: &Settings) -> Result<(), Denial> {
    check_id(id, settings)?;
    if settings.limits.is_events(id) {
        return Err(Denial::ToEventsChannel);
    }
    Ok(())
}
