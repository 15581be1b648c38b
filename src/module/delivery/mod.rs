//! This worker's subscribers: registration, delivery, end.
//!
//! * [`subscriber`], [`slab`]: a subscriber, and all of them by index. [`registry`]: their channels.
//! * [`profile`], [`mod@format`]: what the subscribers of a location have in common.
//! * [`inbox`]: messages from the store. [`hand_out`], [`hand_out_ordered`]: they reach subscribers, in slices.
//! * [`channel_queue`]: messages being handed out, channel by channel in turns.
//! * [`ordered`]: messages merged over several channels, for readers that resume in order.
//! * [`coalesce`]: one send for what a drain finds in several channels of a subscriber.
//! * [`frames`]: messages as bytes, rendered once for all subscribers of a style.
//! * [`compression`], [`mod@compressed`]: pieces compressed once for many readers, and sent.
//! * [`output`], [`send_queue`]: sending to a connection, and the queue of a slow reader. [`flight`]: buffers in nginx's
//!   filters.
//! * [`action`], [`mod@perform`]: what is left to do for a subscriber while the state is not borrowed.
//! * [`mod@detach`], [`lingering_close`]: connections without nginx's request, and their end. [`contexts`]: which modules
//!   hold on to a request.
//! * [`mod@tls`]: records of TLS without OpenSSL. [`mod@take_over`]: taking a connection over from it, and its input.
//! * [`timers`], [`timer_wheel`]: pings and time limits.
//! * [`websocket`], [`mod@socket`]: WebSocket clients, and their input.
//! * [`ending`]: how and why subscribers end. [`disconnect_log`]: one line for each stream that ends.
//! * [`local_counters`]: counts not yet in the zone. [`report`]: adds them, and reports in the error log.
//! * [`mod@top_channels`]: the channels with the most subscriptions, stored bytes and messages.
//! * [`mod@shutdown`]: ending all streams when the nginx worker exits. [`handover`]: its subscribers go to another worker.
//! * [`mail`], [`asking`]: commands to other workers on behalf of requests, and from them. [`control`]: live subscriptions;
//!   [`operations`]: those of WebSocket clients, [`changes`]: what waits of both.
//!   [`dismissal`], [`subjects`]: to end whatever is of one subject.
//! * [`events`], [`callbacks`]: events in nginx's loop, and what it calls. [`housekeeping`]: once a second.
//! * [`recovery`]: after a panic.
//! * [`state`]: the one value that has it all. Files below it do not know it; those above it extend it with `impl`.
//!
//! That value is borrowed for short steps. Calls that may re-enter this module (the output filters,
//! finalizing a request) are made between the steps.

mod action;
mod asking;
mod callbacks;
mod changes;
mod channel_queue;
mod coalesce;
mod compressed;
mod compression;
mod contexts;
mod control;
mod detach;
mod disconnect_log;
mod dismissal;
mod ending;
mod events;
mod flight;
mod format;
mod frames;
mod hand_out;
mod hand_out_ordered;
mod handover;
mod housekeeping;
mod inbox;
mod lingering_close;
mod local_counters;
mod mail;
mod operations;
mod ordered;
mod output;
mod perform;
mod profile;
mod recovery;
mod registry;
mod report;
mod send_queue;
mod shutdown;
mod slab;
mod socket;
mod state;
mod stream;
mod subjects;
mod subscriber;
mod take_over;
mod timer_wheel;
mod timers;
mod tls;
mod top_channels;
mod websocket;

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use ngx::ffi::*;
use ngx::ngx_log_error;
use smallvec::SmallVec;

use push_stream_core::store::{self, AttachReason, Counter, Joined, Membership, Memberships, Now, Summary, Worker};
use push_stream_core::token::subject::Subject;
use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::event_id::OrderedId;

use crate::config::Main;
use crate::ffi::connection::Connection;
use crate::ffi::{fault, lookup, panic_guard, stream as ffi_stream};

use action::Action;
use callbacks::CALLBACKS;
use compression::Compression as Compressors;
use contexts::Neighbours;
use disconnect_log::{DisconnectLog, DisconnectRecord};
use ending::Ending;
use events::Events;
use frames::{Frames, Piece, Style};
use handover::sessions::Handover;
use housekeeping::TICK_MS;
use inbox::Inbox;
use local_counters::{LocalCounters, Reported};
use perform::{advance, end, subscriber_event};
use registry::Registry;
use state::{Counters, Delivery, PROCESS, Shutdown};
use subscriber::{
    EndDue, NEVER, NOWHERE, Replaying, SPREAD_MS, Subscriber, SubscriberId, THROUGH_CONNECTION, THROUGH_FILTERS,
    Transit,
};
use timer_wheel::TimerWheel;
use top_channels::TopChannels;

pub use asking::{Answers, Unasked};
pub use compressed::{member, opening};
pub use compression::Compressed;
pub use contexts::Contexts;
pub use control::CHANGE;
pub use detach::may_send_directly;
pub use ending::Reason;
pub use format::{Compression, Format, Transport};
pub use frames::{Framing, fields, header_filler};
pub use mail::ask;
pub use profile::{Audience, Incoming, Lingering, SlowReader};
pub use subjects::DISMISS;
pub use subscriber::{Kind, Reply, Rest, random_below};
pub use top_channels::{TopChannel, Tops};
pub use websocket::{Deflated, Socket};

/// Makes the socket for invitations to a handover, unless an earlier cycle did.
pub fn prepare_handover(main: &Main) -> io::Result<()> {
    main.open_zone().map_or(Ok(()), |zone| handover::prepare(&zone))
}

/// Starts the delivery in a worker process.
pub fn start(cycle: *mut ngx_cycle_t, main: &Main) {
    let (Some(zone), Some(settings)) = (main.open_zone(), main.settings.clone()) else {
        return;
    };
    // SAFETY: nginx passes a valid cycle.
    let log = unsafe { (*cycle).log };
    let events = Events::new(CALLBACKS, log);
    let mut delivery = Delivery {
        zone,
        worker: None,
        settings,
        registry: Registry::default(),
        inbox: Inbox::default(),
        compression: Compressors::default(),
        timer_wheel: TimerWheel::new(Now::read().monotonic_ms),
        due: VecDeque::new(),
        settling: Vec::new(),
        tls_held: Vec::new(),
        neighbours: Neighbours::find(),
        slice_before: None,
        events,
        shutdown: Shutdown::default(),
        counters: Counters::default(),
        local_counters: LocalCounters::default(),
        top_channels: TopChannels::default(),
        handover: Handover::new(zone.cycle()),
        control: Default::default(),
        dismissals: Default::default(),
        asking: Default::default(),
        reported: Reported::default(),
        disconnect_log: DisconnectLog::default(),
    };
    if !delivery.claim() {
        ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "push stream: all {} slots of the zone are taken, waiting for one",
            zone.slots()
        );
    }
    PROCESS.set(delivery);
    events.tick_in(TICK_MS);
}

/// Ends the delivery: ends all remaining subscribers, as far as that is possible without waiting.
pub fn stop() {
    PROCESS.with(Delivery::stop_accepting);
    shutdown::end_now();
    PROCESS.with(Delivery::note_left);
    if let Some(worker) = PROCESS.take().and_then(|delivery| delivery.worker) {
        worker.release();
    }
}

/// Applies another configuration in a process that keeps running: a reload without a master.
pub fn reconfigure(main: &Main) {
    PROCESS.with(|delivery| {
        if let Some(settings) = main.settings.clone() {
            if let Some(worker) = &mut delivery.worker {
                worker.set_limits(settings.limits.clone(), Now::read());
            }
            delivery.look_if_woken();
            delivery.settings = settings;
            delivery.neighbours = Neighbours::find();
        }
    });
}

/// Runs `work` on this worker's slot in the store; None if it has none. Messages that result for this worker's own
/// subscribers are handed out when the current request has been answered.
pub fn with_store<R>(work: impl FnOnce(&mut Worker) -> R) -> Option<R> {
    PROCESS
        .with(|delivery| {
            let worker = delivery.worker.as_mut()?;
            let result = fault::in_store(|| work(worker));
            delivery.look_if_woken();
            Some(result)
        })
        .flatten()
}

/// Counts a refused subscription; `counter` is the reason.
pub fn count_refused_subscriber(counter: Counter) {
    PROCESS.with(|delivery| delivery.local_counters.refused(counter));
}

/// The figures of the whole zone, including this worker's counts up to now.
pub fn figures(now: Now) -> Option<Summary> {
    PROCESS
        .with(|delivery| {
            delivery.count();
            Some(delivery.worker.as_ref()?.summary(now))
        })
        .flatten()
}

/// Memberships without a subscriber yet: given back on drop.
pub struct Seat(Memberships);

impl Seat {
    pub fn new(joined: &Joined) -> Seat {
        Seat(joined.memberships.iter().copied().chain(joined.address).collect())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            with_store(|worker| worker.leave(&self.0, true));
        }
    }
}

/// A request that becomes a subscriber.
pub struct Enlistment<'p> {
    pub audience: Rc<Audience>,
    /// Ids of the path's channels.
    pub ids: SmallVec<[&'p [u8]; 2]>,
    pub joined: Joined,
    pub seat: Seat,
    pub kind: Kind,
    /// Framing for sending past the output filters, or the reason why that is not allowed.
    pub direct: Result<Framing, Option<AttachReason>>,
    /// The response's content coding, if it is a compressed stream.
    pub coding: Option<Coding>,
    /// Bytes that each message is padded to.
    pub message_min: u32,
    /// The ordered id after which the client wants to resume.
    pub asked: Option<OrderedId>,
    /// Time until it ends with its access token.
    pub ends_in_ms: Option<u64>,
    /// Whose access token it is.
    pub subject: Option<Subject>,
}

/// Takes over a request: from now on it belongs to the delivery. Returns the handler's return value; None if there is
/// no memory for it.
pub fn enlist(r: *mut ngx_http_request_t, mut enlistment: Enlistment<'_>) -> Option<ngx_int_t> {
    let streams = enlistment.kind.is_endless();
    let socket = enlistment.kind.is_socket();
    // SAFETY: the request is valid; what is registered with it refers to the subscriber by name only.
    unsafe {
        let cleanup = ngx_http_cleanup_add(r, 0).as_mut()?;
        if let Some(timeout_ms) = enlistment.audience.dead_peer_timeout_ms {
            Connection::new((*r).connection).set_user_timeout(timeout_ms);
        }
        // From here on the subscriber owns the memberships.
        enlistment.seat.0.clear();
        let memberships = std::mem::take(&mut enlistment.joined.memberships);
        let id = PROCESS.with(|delivery| delivery.add(r, enlistment, &memberships))?;
        cleanup.handler = Some(detach::REQUEST_GONE);
        cleanup.data = id.to_pointer();
        *lookup::context(r) = id.to_pointer();
        watch(r, streams, socket);
        (*r).set_count((*r).count() + 1);
    }
    Some(NGX_DONE as ngx_int_t)
}

/// Registers for events: the client is gone, or can take more.
unsafe fn watch(r: *mut ngx_http_request_t, streams: bool, socket: bool) {
    // SAFETY: request and connection are valid.
    let connection = unsafe {
        (*r).read_event_handler = Some(if socket {
            socket::readable
        } else {
            ngx_http_test_reading
        });
        (*r).write_event_handler = Some(writable);
        Connection::new((*r).connection)
    };
    // SAFETY: as above.
    if streams && unsafe { (*r).http_version } <= NGX_HTTP_VERSION_11 as ngx_uint_t {
        // TCP_NODELAY: nginx does not set it for a first plain request, and Nagle would add 40 ms to the second message.
        connection.set_no_delay();
    }
    // Read or send nothing before the handler has returned: a failure would free the request under it. Bytes that came
    // with a WebSocket handshake are in the request's buffer, and no event announces them.
    if socket || connection.read().is_ready() {
        connection.read().post();
    } else {
        // A failure shows at the next event of the connection.
        connection.read().watch_read();
    }
}

/// Write handler: the socket can take more, or has taken nothing for too long.
unsafe extern "C" fn writable(r: *mut ngx_http_request_t) {
    // SAFETY: nginx passes a valid request that `enlist` gave this handler and its context.
    let (id, event) = unsafe {
        (
            SubscriberId::from_pointer(*lookup::context(r)),
            Connection::new((*r).connection).write(),
        )
    };
    subscriber_event("write event", id, || {
        if event.is_timed_out() {
            end(id, Ending::TimedOut);
        } else if event.is_delayed() {
            // limit_rate: nginx's timer fires again.
            event.watch_write();
        } else {
            advance(id);
        }
    });
}

impl Delivery {
    /// Takes a slot in the zone.
    fn claim(&mut self) -> bool {
        self.worker = self.zone.claim(self.settings.limits.clone(), Now::read());
        self.listen();
        self.start_accepting();
        // Sets the baseline: counts so far were for another worker to report.
        self.report_zone(Now::read());
        self.worker.is_some()
    }

    /// Watches this worker's eventfd, which other workers write to.
    fn listen(&self) {
        if let Some(worker) = &self.worker {
            let fd = self.zone.wake_fds().get(usize::from(worker.slot())).copied();
            self.events.listen(fd);
        }
    }

    fn wake(&mut self) {
        self.inbox.dirty = true;
        self.events.post_work();
    }

    /// Checks for a wake-up after any call that changes the store: no other process signals messages that such a call
    /// brings to this worker's own subscribers, for example in the events channel.
    fn look_if_woken(&mut self) {
        if self.worker.as_ref().is_some_and(Worker::is_woken) {
            self.wake();
        }
    }

    fn add(
        &mut self,
        r: *mut ngx_http_request_t,
        enlistment: Enlistment<'_>,
        memberships: &[Membership],
    ) -> SubscriberId {
        let now_ms = Now::read().monotonic_ms;
        let Enlistment {
            audience,
            ids,
            joined,
            kind,
            ..
        } = enlistment;
        let (ping, ttl) = match kind {
            Kind::Stream | Kind::Compressed(_) | Kind::Socket(_) | Kind::Deflated(_) => {
                (audience.ping_interval_ms, audience.ttl_ms)
            }
            Kind::Waiting(_) => (None, audience.longpolling_ttl_ms),
            Kind::Answer(_) => (None, None),
        };
        // Tokens end at whole seconds: those of many readers would all end in one turn.
        let token_ms = enlistment.ends_in_ms.filter(|_| !matches!(kind, Kind::Answer(_)));
        let token_ms = token_ms.map(|in_ms| now_ms.saturating_add(in_ms).saturating_add(random_below(SPREAD_MS)));
        let framing = enlistment.direct.unwrap_or(Framing::Raw);
        let style = Style {
            format: audience.format.clone(),
            framing: enlistment.coding.map_or(framing, |coding| framing.compressed(coding)),
            message_min: enlistment.message_min,
            padding_max: audience.padding_max.get(),
            coder: None,
        };
        let attach_reason = match enlistment.direct {
            Err(attach_reason) => attach_reason,
            Ok(_) if !audience.detach => Some(AttachReason::Directive),
            Ok(_) => Some(AttachReason::Unsent),
        };
        let tells_position =
            audience.format.ordered && audience.format.transport == Transport::EventSource && !memberships.is_empty();
        let ordered = audience.format.ordered && !memberships.is_empty();
        let replay = joined.replay.map(|replay| {
            Box::new(Replaying {
                replay,
                ids: ids.iter().map(|&id| id.into()).collect(),
                behind: Default::default(),
                first: false,
                position: joined.position.filter(|_| tells_position),
                last: enlistment.asked,
                floor: None,
                further: None,
            })
        });
        let style = self.registry.styles.intern(style, &mut self.compression);
        // SAFETY: the request is valid.
        let filtered = enlistment.direct.is_err() || unsafe { ffi_stream::is_http2(r) };
        let socket = if filtered { THROUGH_FILTERS } else { THROUGH_CONNECTION };
        let mut subscriber = Subscriber {
            request: r,
            socket,
            // SAFETY: the request is valid, and keeps its connection.
            connection: unsafe { (*r).connection },
            style,
            kind,
            flight: None,
            tls: None,
            joined_seq: joined.seq,
            seats: SmallVec::new(),
            address: joined.address.unwrap_or(NOWHERE),
            send_queue: Default::default(),
            replay,
            ping_due_ms: ping.map_or(NEVER, |interval| now_ms + interval),
            end_due: EndDue::earlier(ttl.map(|ttl| now_ms + ttl), token_ms),
            ending: false,
            attach_reason,
            end_reason: None,
            transit: Transit::None,
            disconnect_record: None,
            place: Default::default(),
            audience,
        };
        if let Some(socket) = subscriber.kind.socket_mut() {
            let opening = socket.take_opening();
            if subscriber.is_compressed() {
                // A head and messages that are left as they are.
                let opening = Frames::coded(&opening, Framing::Raw);
                subscriber.send_queue.push(Piece::whole(Rc::new(opening)));
            } else {
                subscriber.push_bytes(&opening);
            }
        }
        if !subscriber.audience.log_disconnect.is_null()
            && subscriber.kind.is_endless()
            && let store::Connection::Attached(mode, _) = subscriber.connected()
        {
            // As realip and the like have left it.
            let client = subscriber.connection().client();
            let disconnect_record =
                DisconnectRecord::new(subscriber.audience.log_disconnect, client, mode, &ids, now_ms);
            subscriber.disconnect_record = Some(Box::new(disconnect_record));
        }
        let mut waiting = subscriber.replay.is_some() || !subscriber.send_queue.is_empty();
        let control = subscriber.audience.control;
        let connected = subscriber.connected();
        let frees_buffer = subscriber.is_filtered() && subscriber.frozen();
        let id = self.registry.add(subscriber, memberships, &ids);
        if let Some(subject) = enlistment.subject {
            self.registry.subjects.set(id.index, subject);
        }
        if ordered {
            self.inbox.ordered.add_reader(id.index, joined.position);
        }
        if let Some(worker) = &self.worker {
            worker.count_in(connected);
        }
        self.schedule(id.index, now_ms);
        if control {
            waiting |= self.tell_session(id);
        }
        if attach_reason == Some(AttachReason::Unsent) || frees_buffer {
            self.settle(id);
        }
        if waiting {
            self.inbox.catching_up.push_back(id);
            self.events.post_work();
        }
        if self.shutdown.begun() {
            self.events.shutdown_in(0);
        }
        id
    }

    /// Schedules a try to detach a subscriber, or at least to give back buffers, for when none of its handlers is running any
    /// more.
    fn settle(&mut self, id: SubscriberId) {
        self.settling.push(id);
        self.events.post_work();
    }

    /// Removes a subscriber, here and in the store.
    fn remove(&mut self, id: SubscriberId, ending: Ending) -> Option<Subscriber> {
        let connected = self.registry.slab.get(id)?.connected();
        if let Some(worker) = &self.worker {
            worker.count_out(connected);
        }
        self.timer_wheel.remove(&mut self.registry.slab, id.index);
        self.leave_store(id.index);
        self.inbox.ordered.remove_reader(id.index);
        self.counters.ended += 1;
        let mut subscriber = self.registry.take(id)?;
        subscriber.leave_flight();
        if let Some(reason) = subscriber.closing_reason(ending) {
            self.local_counters.closed(reason);
            if let Some(disconnect_record) = subscriber.disconnect_record.take() {
                self.disconnect_log
                    .add(&disconnect_record, reason, Now::read().monotonic_ms);
                self.events.post_work();
            }
        }
        Some(subscriber)
    }

    /// Counts and logs the end of subscribers that are cut with the process.
    fn note_left(&mut self) {
        let now_ms = Now::read().monotonic_ms;
        for index in 0..self.registry.slab.end() {
            let Some(left) = self.registry.slab.at(index) else {
                continue;
            };
            let Some(reason) = left.closing_reason(Ending::Regular) else {
                continue;
            };
            self.local_counters.closed(reason);
            if let Some(disconnect_record) = left.disconnect_record.take() {
                self.disconnect_log.add(&disconnect_record, reason, now_ms);
            }
        }
        self.count();
        self.disconnect_log.flush(now_ms);
    }

    /// Removes the subscriber at `index` from all its channels; it receives no more messages.
    fn leave_store(&mut self, index: u32) {
        let mut left = self.registry.unseat_all(index);
        if let Some(subscriber) = self.registry.slab.at(index) {
            subscriber.ending = true;
            left.extend(subscriber.take_address());
        }
        if let Some(worker) = self.worker.as_mut().filter(|_| !left.is_empty()) {
            panic_guard::twice("leave", || fault::in_store(|| worker.leave(&left, true)));
        }
        self.look_if_woken();
    }

    /// Begins the regular end of a subscriber.
    fn begin_end(&mut self, id: SubscriberId, reason: Reason) -> Option<Action> {
        let subscriber = self.registry.slab.get(id)?;
        subscriber.ends(reason);
        if let Kind::Answer(_) = subscriber.kind {
            // A poll's answer ends by itself.
            return None;
        }
        subscriber.replay = None;
        subscriber.end_due = EndDue::NEVER;
        subscriber.ping_due_ms = NEVER;
        subscriber.push_farewell();
        self.timer_wheel.remove(&mut self.registry.slab, id.index);
        self.leave_store(id.index);
        Some(Action::Advance(id))
    }
}

/// The `count` busiest channels by each measure, as far as they are known.
pub fn top_channels(count: usize) -> Tops {
    let some = PROCESS.with(|delivery| {
        let first = |found: &[TopChannel]| found.iter().take(count).cloned().collect();
        let found = &delivery.top_channels.found;
        Tops {
            by_subscribers: first(&found.by_subscribers),
            by_bytes: first(&found.by_bytes),
            by_rate: first(&found.by_rate),
        }
    });
    some.unwrap_or_default()
}
