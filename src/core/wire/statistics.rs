//! Channel information and statistics in JSON, plain, YAML and XML (`compat.md` §18), always well-formed whatever bytes an id holds.

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Plain,
    Json,
    Yaml,
    Xml,
}

/// One channel.
#[derive(Clone, Copy, Debug)]
pub struct Channel<'a> {
    pub id: &'a [u8],
    pub published: u64,
    pub stored: u64,
    pub subscribers: u64,
}

/// The head of a group of channels.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    pub hostname: &'a [u8],
    /// Seconds since the epoch.
    pub time: u64,
    pub channels: u64,
    pub wildcard_channels: u64,
    pub uptime: u64,
}

/// The figures of the whole zone.
#[derive(Clone, Copy, Debug)]
pub struct Summary<'a> {
    pub hostname: &'a [u8],
    pub time: u64,
    pub channels: u64,
    pub wildcard_channels: u64,
    pub published: u64,
    pub stored: u64,
    pub messages_in_trash: u64,
    pub channels_in_delete: u64,
    pub channels_in_trash: u64,
    pub subscribers: u64,
    pub uptime: u64,
    pub workers: &'a [Worker],
}

/// One nginx worker.
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    pub pid: u32,
    pub subscribers: u64,
    pub uptime: u64,
}

/// Chooses format and content type from an Accept header (`compat.md` §4.6).
pub fn negotiate(_accept: Option<&[u8]>) -> (Format, &'static str) {
    todo!()
}

/// One channel alone.
pub fn channel(_format: Format, _channel: &Channel<'_>, _out: &mut Vec<u8>) {
    todo!()
}

/// Writes a group piece by piece, so that a million channels never stand in memory as one list.
pub struct GroupWriter {
    format: Format,
    empty: bool,
}

impl GroupWriter {
    pub fn start(format: Format, _group: &Group<'_>, _out: &mut Vec<u8>) -> GroupWriter {
        GroupWriter { format, empty: true }
    }

    pub fn channel(&mut self, _channel: &Channel<'_>, _out: &mut Vec<u8>) {
        self.empty = false;
    }

    pub fn finish(self, _out: &mut Vec<u8>) {
        let _ = self.format;
    }
}

/// The summary.
pub fn summary(_format: Format, _summary: &Summary<'_>, _out: &mut Vec<u8>) {
    todo!()
}
