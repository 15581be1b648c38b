//! The zone's figures for monitoring systems, each with its name and meaning. The cost of a scrape does not depend on
//! the number of channels.

use push_stream_core::store::{AttachReason, Connections, Counter, Fanout, Mode, Summary};
use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::exposition::{Exposition, Histogram, Kind, Writer};

use crate::delivery::{Reason, TopChannel, Tops};

/// Labels and counters of refused messages.
const REFUSALS: [(&[u8], Counter); 7] = [
    (b"full", Counter::RefusedFull),
    (b"limit", Counter::RefusedLimit),
    (b"invalid", Counter::RefusedInvalid),
    (b"forbidden", Counter::RefusedForbidden),
    (b"unauthorized", Counter::RefusedUnauthorized),
    (b"out_of_order", Counter::RefusedOutOfOrder),
    (b"dependency", Counter::RefusedDependency),
];

/// Labels and counters of refused subscriptions.
const REFUSED_SUBSCRIBERS: [(&[u8], Counter); 6] = [
    (b"limit", Counter::SubscriberLimit),
    (b"forbidden", Counter::SubscriberForbidden),
    (b"unauthorized", Counter::SubscriberUnauthorized),
    (b"invalid", Counter::SubscriberInvalid),
    (b"full", Counter::SubscriberFull),
    (b"unavailable", Counter::SubscriberUnavailable),
];

const TLS_KEPT: [(&[u8], Counter); 4] = [
    (b"protocol", Counter::TlsKeptProtocol),
    (b"unknown", Counter::TlsKeptUnknown),
    (b"busy", Counter::TlsKeptBusy),
    (b"unaccounted", Counter::TlsKeptUnaccounted),
];

const SLOW_READERS: [(&[u8], Counter); 3] = [
    (b"close", Counter::SlowClose),
    (b"skip", Counter::SlowSkip),
    (b"latest", Counter::SlowLatest),
];

const SESSION_CHANGES: [(&[u8], Counter); 4] = [
    (b"done", Counter::SessionChanged),
    (b"unknown", Counter::SessionUnknown),
    (b"refused", Counter::SessionRefused),
    (b"late", Counter::SessionLate),
];

const WAKEUPS: [(&[u8], Counter); 3] = [
    (b"signal", Counter::WakeupSignal),
    (b"own", Counter::WakeupOwn),
    (b"timer", Counter::WakeupTimer),
];

/// Writes all metrics.
pub fn write(exposition: Exposition, summary: &Summary, tops: &Tops) -> Vec<u8> {
    let mut writer = Writer::new(exposition);
    messages(&mut writer, summary);
    readers(&mut writer, summary);
    zone(&mut writer, summary);
    compression(&mut writer, summary);
    workers(&mut writer, summary);
    stalls(&mut writer, summary);
    channels(&mut writer, tops);
    writer.finish()
}

fn messages(writer: &mut Writer, summary: &Summary) {
    let counts = &summary.counts;
    writer
        .family(
            "push_stream_messages_published",
            Kind::Counter,
            "Messages accepted, once for each channel.",
        )
        .sample(&[], summary.published);
    writer
        .family(
            "push_stream_messages_delivered",
            Kind::Counter,
            "Messages handed to subscribers, once for each.",
        )
        .sample(&[], counts.get(Counter::Delivered));
    writer
        .family(
            "push_stream_messages_duplicate",
            Kind::Counter,
            "Messages skipped because the channel had accepted their id before.",
        )
        .sample(&[], counts.get(Counter::Duplicate));
    labelled(
        writer,
        ("push_stream_messages_refused", "Messages refused, by reason."),
        "reason",
        &REFUSALS.map(|(reason, counter)| (reason, counts.get(counter))),
    );
    let evicted = &summary.evicted;
    labelled(
        writer,
        (
            "push_stream_messages_evicted",
            "Messages dropped to make room, by what they were.",
        ),
        "reason",
        &[
            (b"trash", evicted.trash),
            (b"expired", evicted.expired),
            (b"stored", evicted.stored),
            (b"undelivered", evicted.undelivered),
        ],
    );
    writer
        .family("push_stream_messages_stored", Kind::Gauge, "Messages stored now.")
        .sample(&[], summary.stored);
    writer
        .family(
            "push_stream_messages_in_trash",
            Kind::Gauge,
            "Messages that are gone and whose memory is not back yet.",
        )
        .sample(&[], summary.messages_in_trash);
    let Fanout { buckets, sum_ms } = counts.fanout();
    writer
        .family(
            "push_stream_fanout_seconds",
            Kind::Histogram,
            "From the publication of a message until a worker had sent it to the last of its subscribers.",
        )
        .histogram(Histogram {
            bounds_ms: &Fanout::BOUNDS_MS,
            buckets: &buckets,
            sum_ms,
        });
}

fn readers(writer: &mut Writer, summary: &Summary) {
    let counts = &summary.counts;
    let mut subscribers = writer.family(
        "push_stream_subscribers",
        Kind::Gauge,
        "Subscribers connected, with a request of nginx or, detached, without.",
    );
    for mode in Mode::ALL {
        let name = mode.name().as_bytes();
        let sum = |count: fn(&Connections, Mode) -> u32| {
            let of_each = summary.workers.iter().map(|worker| count(&worker.connections, mode));
            of_each.map(u64::from).sum::<u64>()
        };
        subscribers.sample(&[("mode", name), ("state", b"attached")], sum(Connections::attached));
        subscribers.sample(&[("mode", name), ("state", b"detached")], sum(Connections::detached));
    }
    let mut attached = writer.family(
        "push_stream_subscribers_attached",
        Kind::Gauge,
        "Streams that could do without their request of nginx and keep it, by reason.",
    );
    for attach_reason in AttachReason::ALL {
        let of_each = summary
            .workers
            .iter()
            .map(|worker| worker.connections.attached_for(attach_reason));
        let sum = of_each.map(u64::from).sum();
        attached.sample(&[("reason", attach_reason.name().as_bytes())], sum);
    }
    labelled(
        writer,
        (
            "push_stream_subscribers_refused",
            "Requests to subscribe that were refused, by reason.",
        ),
        "reason",
        &REFUSED_SUBSCRIBERS.map(|(reason, counter)| (reason, counts.get(counter))),
    );
    labelled(
        writer,
        ("push_stream_subscribers_closed", "Streams that ended, by reason."),
        "reason",
        &Reason::ALL.map(|reason| (reason.name().as_bytes(), counts.get(reason.counter()))),
    );
    writer
        .family(
            "push_stream_token_files_refused",
            Kind::Counter,
            "Times that a changed file of keys or revocations could not be read, so that its former content stayed.",
        )
        .sample(&[], counts.get(Counter::TokenFileBad));
    writer
        .family(
            "push_stream_gap_notices",
            Kind::Counter,
            "Subscribers told that they have missed messages.",
        )
        .sample(&[], counts.get(Counter::GapNotice));
    writer
        .family(
            "push_stream_subscribers_handed_over",
            Kind::Counter,
            "Subscribers that went from a leaving worker to another one.",
        )
        .sample(&[], counts.get(Counter::HandedOver));
    writer
        .family(
            "push_stream_tls_taken_over",
            Kind::Counter,
            "Detached subscribers whose TLS was taken over from OpenSSL.",
        )
        .sample(&[], counts.get(Counter::TlsTakenOver));
    labelled(
        writer,
        (
            "push_stream_tls_kept",
            "Detached subscribers whose TLS stayed with OpenSSL, at least at first, by reason.",
        ),
        "reason",
        &TLS_KEPT.map(|(reason, counter)| (reason, counts.get(counter))),
    );
    labelled(
        writer,
        (
            "push_stream_slow_readers",
            "Readers whose queue was full, by what was done.",
        ),
        "action",
        &SLOW_READERS.map(|(action, counter)| (action, counts.get(counter))),
    );
}

fn compression(writer: &mut Writer, summary: &Summary) {
    let counts = &summary.counts;
    let mut bytes = writer.family(
        "push_stream_compressed_bytes",
        Kind::Counter,
        "Bytes of messages before and after compression, once for each time that they were compressed.",
    );
    let [gzip, zstd] = [Coding::Gzip, Coding::Zstd].map(|coding| coding.name().as_bytes());
    for (coding, stage, counter) in [
        (gzip, &b"in"[..], Counter::CompressedIn),
        (gzip, b"out", Counter::CompressedOut),
        (zstd, b"in", Counter::ZstdIn),
        (zstd, b"out", Counter::ZstdOut),
        (b"permessage-deflate", b"in", Counter::DeflatedIn),
        (b"permessage-deflate", b"out", Counter::DeflatedOut),
    ] {
        bytes.sample(&[("coding", coding), ("stage", stage)], counts.get(counter));
    }
    writer
        .family("push_stream_compress_seconds", Kind::Counter, "Time of compression.")
        .sample_us(&[], counts.get(Counter::CompressedUs));
    labelled(
        writer,
        (
            "push_stream_compressed_deliveries",
            "Pieces sent to compressed readers: with the context of a group, or alone.",
        ),
        "context",
        &[
            (b"group", counts.get(Counter::DeliveredAligned)),
            (b"alone", counts.get(Counter::DeliveredUnaligned)),
        ],
    );
    writer
        .family(
            "push_stream_compress_groups",
            Kind::Gauge,
            "Channels whose compressed readers share a context now, in all workers.",
        )
        .sample(
            &[],
            summary
                .workers
                .iter()
                .map(|worker| u64::from(worker.compress_groups))
                .sum(),
        );
}

fn zone(writer: &mut Writer, summary: &Summary) {
    let mut bytes = writer.family(
        "push_stream_zone_bytes",
        Kind::Gauge,
        "Bytes of the zone in use, free, and the most ever in use.",
    );
    for (state, value) in [
        (&b"used"[..], summary.bytes_total - summary.bytes_free),
        (b"free", summary.bytes_free),
        (b"high_water", summary.bytes_high_water),
    ] {
        bytes.sample(&[("state", state)], value);
    }
    let mut channels = writer.family(
        "push_stream_channels",
        Kind::Gauge,
        "Channels, by kind; those that were deleted until their memory is back.",
    );
    for (kind, value) in [
        (&b"ordinary"[..], summary.channels),
        (b"wildcard", summary.wildcard_channels),
        (b"in_delete", summary.channels_in_delete),
        (b"in_trash", summary.channels_in_trash),
    ] {
        channels.sample(&[("kind", kind)], value);
    }
    writer
        .family(
            "push_stream_channels_evicted",
            Kind::Counter,
            "Idle channels dropped to make room.",
        )
        .sample(&[], summary.evicted.channels);
}

fn workers(writer: &mut Writer, summary: &Summary) {
    labelled(
        writer,
        (
            "push_stream_wakeups",
            "Workers told that there is something to deliver, by how.",
        ),
        "kind",
        &WAKEUPS.map(|(kind, counter)| (kind, summary.counts.get(counter))),
    );
    labelled(
        writer,
        (
            "push_stream_session_changes",
            "Changes of live subscriptions that were asked for, by outcome.",
        ),
        "outcome",
        &SESSION_CHANGES.map(|(outcome, counter)| (outcome, summary.counts.get(counter))),
    );
    writer
        .family(
            "push_stream_worker_restarts",
            Kind::Counter,
            "Workers that died without being told to.",
        )
        .sample(&[], summary.restarts);
    let slots: Vec<String> = summary.workers.iter().map(|worker| worker.slot.to_string()).collect();
    let figures = [
        (
            "push_stream_worker_subscribers",
            "Subscribers connected to a worker.",
            summary
                .workers
                .iter()
                .map(|worker| worker.subscribers)
                .collect::<Vec<_>>(),
        ),
        (
            "push_stream_worker_queue_bytes",
            "Bytes that wait for slow readers of a worker.",
            summary.workers.iter().map(|worker| worker.queued_bytes).collect(),
        ),
        (
            "push_stream_worker_start_time_seconds",
            "When a worker was started, since the epoch.",
            summary.workers.iter().map(|worker| worker.started_unix).collect(),
        ),
    ];
    for (name, help, values) in figures {
        let mut family = writer.family(name, Kind::Gauge, help);
        for (slot, value) in slots.iter().zip(values) {
            family.sample(&[("worker", slot.as_bytes())], value);
        }
    }
}

/// The longest event-loop stall during delivery, per worker.
fn stalls(writer: &mut Writer, summary: &Summary) {
    let mut family = writer.family(
        "push_stream_worker_event_loop_stall_seconds_max",
        Kind::Gauge,
        "The longest that a worker did not look for events while it delivered, since its start.",
    );
    for worker in &summary.workers {
        let slot = worker.slot.to_string();
        family.sample_us(&[("worker", slot.as_bytes())], worker.longest_stretch_us.into());
    }
}

/// Reads one figure of a channel.
type Figure = fn(&TopChannel) -> u64;

/// The busiest channels, if configured: each family lists the channels with the highest values of it.
fn channels(writer: &mut Writer, tops: &Tops) {
    let by_subscribers: [(_, _, _, Figure); 3] = [
        (
            "push_stream_channel_subscribers",
            Kind::Gauge,
            "Subscriptions of the channels that have the most.",
            |channel| channel.info.subscribers,
        ),
        (
            "push_stream_channel_messages_published",
            Kind::Counter,
            "Messages ever published in the channels that have the most subscriptions.",
            |channel| channel.info.published,
        ),
        (
            "push_stream_channel_messages_stored",
            Kind::Gauge,
            "Messages stored in the channels that have the most subscriptions.",
            |channel| channel.info.stored,
        ),
    ];
    if !tops.by_subscribers.is_empty() {
        for (name, kind, help, value) in by_subscribers {
            let mut family = writer.family(name, kind, help);
            for channel in &tops.by_subscribers {
                family.sample(&[("channel", &channel.id)], value(channel));
            }
        }
    }
    if !tops.by_bytes.is_empty() {
        let mut family = writer.family(
            "push_stream_channel_stored_bytes",
            Kind::Gauge,
            "Memory of the stored messages of the channels that have the most.",
        );
        for channel in &tops.by_bytes {
            family.sample(&[("channel", &channel.id)], channel.stored_bytes);
        }
    }
    if !tops.by_rate.is_empty() {
        let mut family = writer.family(
            "push_stream_channel_messages_per_second",
            Kind::Gauge,
            "Messages lately published in the channels that got the most.",
        );
        for channel in &tops.by_rate {
            family.sample_us(&[("channel", &channel.id)], channel.per_1000_secs * 1000);
        }
    }
}

/// A counter with one label.
fn labelled(writer: &mut Writer, (name, help): (&'static str, &str), label: &str, samples: &[(&[u8], u64)]) {
    let mut family = writer.family(name, Kind::Counter, help);
    for &(text, value) in samples {
        family.sample(&[(label, text)], value);
    }
}
