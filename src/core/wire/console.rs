//! The figures of the console's page, as JSON. Their cost does not depend on the number of channels.

use super::statistics::{Channel, Format, Record};

/// A worker's own figures.
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    pub slot: u16,
    pub pid: u32,
    pub subscribers: u64,
    pub queued_bytes: u64,
    pub stall_ms: u64,
    pub uptime: u64,
}

/// One of the channels that have the most of something.
#[derive(Clone, Copy, Debug)]
pub struct Busy<'a> {
    pub channel: Channel<'a>,
    pub stored_bytes: u64,
    pub per_1000_secs: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Figures<'a> {
    pub hostname: &'a [u8],
    pub version: &'a str,
    /// Does this location have the admin API?
    pub admin: bool,
    /// How many of the busiest channels are looked for.
    pub top: u64,
    /// What has one value, by name.
    pub numbers: &'a [(&'static str, u64)],
    /// Subscribers by mode.
    pub modes: &'a [(&'static str, u64)],
    /// Deliveries by the time that they took: the bound of each bucket, and its number; the last one has no bound.
    pub fanout: &'a [(Option<u64>, u64)],
    pub workers: &'a [Worker],
    /// Names of the push-stream-workers and of the other nodes that this console watches.
    pub companions: &'a [&'a [u8]],
    pub nodes: &'a [&'a [u8]],
    pub by_subscribers: &'a [Busy<'a>],
    pub by_bytes: &'a [Busy<'a>],
    pub by_rate: &'a [Busy<'a>],
}

/// Appends the figures.
pub fn figures(figures: &Figures<'_>, out: &mut Vec<u8>) {
    out.push(b'{');
    let mut record = Record::new(Format::Json, "", ", ", out);
    record
        .text("hostname", figures.hostname)
        .text("version", figures.version.as_bytes())
        .number("admin", figures.admin.into())
        .number("top", figures.top);
    for &(name, value) in figures.numbers {
        record.number(name, value);
    }
    record
        .list("modes", figures.modes, |&(name, count), mode| {
            mode.text("name", name.as_bytes()).number("count", count);
        })
        .list("fanout", figures.fanout, |&(bound, count), bucket| {
            bucket.number("below_ms", bound.unwrap_or(0)).number("count", count);
        })
        .list("workers", figures.workers, |worker, fields| {
            fields
                .number("worker", worker.slot.into())
                .number("pid", worker.pid.into())
                .number("subscribers", worker.subscribers)
                .number("queued_bytes", worker.queued_bytes)
                .number("stall_ms", worker.stall_ms)
                .number("uptime", worker.uptime);
        });
    for (name, watched) in [("companions", figures.companions), ("nodes", figures.nodes)] {
        record.list(name, watched, |name, fields| {
            fields.text("name", name);
        });
    }
    for (name, channels) in [
        ("by_subscribers", figures.by_subscribers),
        ("by_bytes", figures.by_bytes),
        ("by_rate", figures.by_rate),
    ] {
        record.list(name, channels, |busy, fields| {
            fields
                .channel("channel", "subscribers", &busy.channel)
                .number("stored_bytes", busy.stored_bytes)
                .number("per_1000_seconds", busy.per_1000_secs);
        });
    }
    out.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_is_there_by_its_name() {
        let busy = [Busy {
            channel: Channel {
                id: b"a\"b</script>",
                published: 5,
                stored: 4,
                subscribers: 3,
            },
            stored_bytes: 2,
            per_1000_secs: 1500,
        }];
        let mut out = Vec::new();
        figures(
            &Figures {
                hostname: b"host",
                version: "1.2",
                admin: true,
                top: 20,
                numbers: &[("published", 7), ("delivered", u64::MAX)],
                modes: &[("eventsource", 2)],
                fanout: &[(Some(1), 8), (None, 9)],
                workers: &[Worker {
                    slot: 1,
                    pid: 2,
                    subscribers: 3,
                    queued_bytes: 4,
                    stall_ms: 5,
                    uptime: 6,
                }],
                companions: &[b"feeder"],
                nodes: &[b"b", b"c"],
                by_subscribers: &busy,
                by_bytes: &[],
                by_rate: &busy,
            },
            &mut out,
        );
        let channel = json!({"channel": "a\"b</script>", "published_messages": 5, "stored_messages": 4, "subscribers": 3,
            "stored_bytes": 2, "per_1000_seconds": 1500});
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&out).unwrap(),
            json!({
                "hostname": "host", "version": "1.2", "admin": 1, "top": 20, "published": 7, "delivered": u64::MAX,
                "modes": [{"name": "eventsource", "count": 2}],
                "fanout": [{"below_ms": 1, "count": 8}, {"below_ms": 0, "count": 9}],
                "workers": [{"worker": 1, "pid": 2, "subscribers": 3, "queued_bytes": 4, "stall_ms": 5, "uptime": 6}],
                "companions": [{"name": "feeder"}], "nodes": [{"name": "b"}, {"name": "c"}],
                "by_subscribers": [channel], "by_bytes": [], "by_rate": [channel],
            })
        );
    }
}
