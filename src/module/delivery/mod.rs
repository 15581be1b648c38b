//! This worker's subscribers: registration, delivery, end.
//!
//! * [`subscriber`], [`slab`]: a subscriber, and all of them by index. [`registry`]: their channels.
//! * [`action`]: what is left to do for a subscriber, and the outcome of a delivery.
//! * [`inbox`]: messages from the store, handed out to subscribers in slices.
//! * [`channel_queue`]: messages being handed out, channel by channel in turns.
//! * [`ordered`]: messages merged over several channels, for readers that resume in order.
//! * [`coalesce`]: one send for what a drain finds in several channels of a subscriber.
//! * [`profile`], [`format`]: what the subscribers of a location have in common.
//! * [`frames`]: messages as bytes, rendered once for all subscribers of a style.
//! * [`output`], [`send_queue`]: sending to a connection, and the queue of a slow reader. [`flight`]: buffers in nginx's
//!   filters.
//! * [`detach`], [`lingering_close`]: connections without nginx's request, and their end.
//! * [`mod@top_channels`]: the channels with the most subscriptions, stored bytes and messages.
//! * [`timer_wheel`]: pings and time limits.
//! * [`websocket`], [`mod@socket`]: WebSocket clients, and their input.
//! * [`ending`]: how and why subscribers end. [`disconnect_log`]: one line for each stream that ends.
//! * [`report`]: reports in the error log. [`local_counters`]: counts not yet in the zone.
//! * [`mod@shutdown`]: ending all streams when the nginx worker exits. [`handover`]: its subscribers go to another worker.
//! * [`events`]: callbacks and timers of nginx's event loop.
//! * [`recovery`]: after a panic.
//!
//! All state is one value, borrowed for short steps. Calls that may re-enter this module (the output filters,
//! finalizing a request) are made between the steps.

mod action;
mod channel_queue;
mod coalesce;
mod detach;
mod disconnect_log;
mod ending;
mod events;
mod flight;
mod format;
mod frames;
mod handover;
mod inbox;
mod lingering_close;
mod local_counters;
mod ordered;
mod output;
mod profile;
mod recovery;
mod registry;
mod report;
mod send_queue;
mod shutdown;
mod slab;
mod socket;
mod subscriber;
mod timer_wheel;
mod top_channels;
mod websocket;

use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Instant;

use ngx::ffi::*;
use ngx::ngx_log_error;
use smallvec::SmallVec;

use push_stream_core::store::{AttachReason, Connection, Counter, Joined, Membership, Now, Summary, Worker, Zone};
use push_stream_core::wire::event_id::OrderedId;

use crate::config::{Main, Settings};
use crate::ffi::cell::ProcessCell;
use crate::ffi::{body, fault, lookup, panic_guard, pool, tcp};

use action::{Action, Answer, Delivered};
use detach::Neighbours;
use disconnect_log::{DisconnectLog, DisconnectRecord};
use ending::Ending;
use events::Events;
use flight::Flight;
use frames::{Frames, Piece, Style};
use handover::Handover;
use inbox::{Inbox, Replayed};
use local_counters::LocalCounters;
use output::Step;
use registry::Registry;
use report::Reported;
use shutdown::Shutdown;
use subscriber::{NEVER, NOWHERE, Replaying, Subscriber, SubscriberId, Transit};
use timer_wheel::TimerWheel;
use top_channels::TopChannels;

pub use detach::{Contexts, may_send_directly};
pub use ending::Reason;
pub use format::{Format, Transport};
pub use frames::{Framing, fields, header_filler};
pub use profile::{Audience, Incoming, Lingering, SlowReader};
pub use subscriber::{Kind, Reply, Rest};
pub use top_channels::{TopChannel, Tops, top_channels};
pub use websocket::Socket;

/// Pings and ends per slice, before other events get their turn.
const DUE_PER_SLICE: usize = 256;

/// All delivery state of this process.
static PROCESS: ProcessCell<Delivery> = ProcessCell::empty();

/// One worker's part of the delivery.
struct Delivery {
    zone: Zone,
    /// None while no slot of the zone is free.
    worker: Option<Worker>,
    settings: Rc<Settings>,
    registry: Registry,
    inbox: Inbox,
    timer_wheel: TimerWheel,
    /// Indices of subscribers whose timer has expired and that are not handled yet.
    due: VecDeque<u32>,
    /// Subscribers to try to detach once none of their request's handlers is running.
    settling: Vec<SubscriberId>,
    neighbours: Neighbours,
    /// Start of the last slice of work, if that left more to do.
    slice_before: Option<Instant>,
    events: &'static Events,
    shutdown: Shutdown,
    counters: Counters,
    local_counters: LocalCounters,
    top_channels: TopChannels,
    handover: Handover,
    reported: Reported,
    disconnect_log: DisconnectLog,
}

/// Counts of slow readers and ended subscribers in this worker.
#[derive(Default)]
struct Counters {
    /// Messages dropped by the policies `skip` and `latest`.
    dropped: u64,
    /// Connections closed by the policy `close`.
    too_slow: u64,
    /// Subscribers ended since memory was last given back, now and at the last tick.
    ended: usize,
    ended_before: usize,
    /// When memory was last given back.
    trimmed_ms: u64,
}

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
    let events = Events::new(log);
    let mut delivery = Delivery {
        zone,
        worker: None,
        settings,
        registry: Registry::default(),
        inbox: Inbox::default(),
        timer_wheel: TimerWheel::new(Now::read().monotonic_ms),
        due: VecDeque::new(),
        settling: Vec::new(),
        neighbours: Neighbours::find(),
        slice_before: None,
        events,
        shutdown: Shutdown::default(),
        counters: Counters::default(),
        local_counters: LocalCounters::default(),
        top_channels: TopChannels::default(),
        handover: Handover::new(zone.cycle()),
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
    events.start();
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
pub struct Seat(Vec<Membership>);

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
    /// Bytes that each message is padded to.
    pub message_min: u32,
    /// The ordered id after which the client wants to resume.
    pub asked: Option<OrderedId>,
}

/// Takes over a request: from now on it belongs to the delivery. Returns the handler's return value; None if there is
/// no memory for it.
pub fn enlist(r: *mut ngx_http_request_t, mut enlistment: Enlistment<'_>) -> Option<ngx_int_t> {
    let streams = matches!(enlistment.kind, Kind::Stream | Kind::Socket(_));
    let socket = matches!(enlistment.kind, Kind::Socket(_));
    // SAFETY: the request is valid; what is registered with it refers to the subscriber by name only.
    unsafe {
        let cleanup = ngx_http_cleanup_add(r, 0).as_mut()?;
        if let Some(timeout_ms) = enlistment.audience.dead_peer_timeout_ms {
            tcp::set_user_timeout((*r).connection, timeout_ms);
        }
        let flight = match enlistment.direct {
            Err(_) => Some(pool::place((*r).pool, Flight::new())?),
            Ok(_) => None,
        };
        // From here on the subscriber owns the memberships.
        enlistment.seat.0.clear();
        let memberships = std::mem::take(&mut enlistment.joined.memberships);
        let id = PROCESS.with(|delivery| delivery.add(r, enlistment, &memberships, flight))?;
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
    unsafe {
        let connection = (*r).connection;
        (*r).read_event_handler = Some(if socket {
            socket::readable
        } else {
            ngx_http_test_reading
        });
        (*r).write_event_handler = Some(writable);
        if streams && (*r).http_version <= NGX_HTTP_VERSION_11 as ngx_uint_t {
            // TCP_NODELAY: nginx does not set it for a first plain request, and Nagle would add 40 ms to the second
            // message.
            ngx_tcp_nodelay(connection);
        }
        let read = (*connection).read;
        // Read or send nothing before the handler has returned: a failure would free the request under it. Bytes that
        // came with a WebSocket handshake are in the request's buffer, and no event announces them.
        if socket || (*read).ready() != 0 {
            ngx_post_event(read, &raw mut ngx_posted_events);
        } else {
            // A failure shows at the next event of the connection.
            ngx_handle_read_event(read, 0);
        }
    }
}

/// Cleanup handler: nginx frees the request, for whatever reason.
unsafe extern "C" fn request_gone(data: *mut c_void) {
    let remove = || {
        PROCESS.with(|delivery| delivery.remove(SubscriberId::from_pointer(data), Ending::Gone));
    };
    // A subscriber without its request must not stay.
    let or_abort = || panic_guard::guard("request cleanup again", || std::process::abort(), remove);
    panic_guard::guard("request cleanup", or_abort, remove);
}

/// The guard for handlers of one subscriber: after a panic its connection ends.
fn subscriber_event(entry: &str, id: SubscriberId, body: impl FnOnce()) {
    panic_guard::guard(entry, || panic_guard::event("end", || end(id, Ending::Failed)), body);
}

/// Write handler: the socket can take more, or has taken nothing for too long.
unsafe extern "C" fn writable(r: *mut ngx_http_request_t) {
    // SAFETY: nginx passes a valid request that `enlist` gave this handler and its context.
    let (id, event) = unsafe {
        (
            SubscriberId::from_pointer(*lookup::context(r)),
            (*(*r).connection).write,
        )
    };
    subscriber_event("write event", id, || {
        // SAFETY: a connection has a write event.
        let (timed_out, delayed) = unsafe { ((*event).timedout() != 0, (*event).delayed() != 0) };
        if timed_out {
            end(id, Ending::TimedOut);
        } else if delayed {
            // limit_rate: nginx's timer fires again.
            // SAFETY: as above.
            unsafe { ngx_handle_write_event(event, 0) };
        } else {
            advance(id);
        }
    });
}

/// Performs the actions left by a slice of work or an expired timer.
fn perform(actions: Vec<Action>) {
    for action in actions {
        match action {
            Action::Advance(id) => advance(id),
            Action::Answer(id, answer) => answer_waiting(id, &answer),
            Action::End(id, ending) => end(id, ending),
        }
    }
}

/// Sends to a subscriber until its socket is full or nothing is left to send.
fn advance(id: SubscriberId) {
    let (mut attempted, mut replays) = (false, 0);
    loop {
        let Some(step) = PROCESS
            .with(|delivery| delivery.step(id, &mut attempted, &mut replays))
            .flatten()
        else {
            return;
        };
        match step {
            Next::Filter(r, chain) => {
                // SAFETY: the subscriber is registered, so its request is alive; the chain is in its flight.
                if unsafe { output::filter(r, chain) } == NGX_ERROR as ngx_int_t {
                    return end(id, Ending::Failed);
                }
            }
            Next::End(ending) => return end(id, ending),
        }
    }
}

/// Steps of [`advance`] outside of the borrow.
enum Next {
    Filter(*mut ngx_http_request_t, *mut ngx_chain_t),
    End(Ending),
}

/// Ends a subscriber's request.
fn end(id: SubscriberId, ending: Ending) {
    let removed = PROCESS.with(|delivery| {
        let missed = delivery.inbox.ordered.take_missed(id.index);
        Some((delivery.remove(id, ending)?, missed))
    });
    let Some((subscriber, missed)) = removed.flatten() else {
        return;
    };
    if subscriber.is_detached() {
        // SAFETY: the subscriber was registered until now, so its connection is open.
        return unsafe { lingering_close::close(&subscriber, ending) };
    }
    let r = subscriber.request;
    // SAFETY: the subscriber was registered until now, so its request is alive.
    unsafe {
        let connection = (*r).connection;
        let code = match ending {
            Ending::Regular => match subscriber.kind {
                Kind::Stream => body::send(r, subscriber.audience.footer.clone(), true),
                // Its last frames were in the send queue.
                Kind::Socket(_) => {
                    if ngx_exiting != 0 || ngx_terminate != 0 {
                        // The process must not wait for further input from the client.
                        (*r).set_lingering_close(0);
                    }
                    NGX_OK as ngx_int_t
                }
                Kind::Waiting(respond) => panic_guard::request("time-out", || respond(r, Reply::TimedOut, &missed)),
                // The end of its text was in the send queue.
                Kind::Answer(_) => body::send(r, Vec::new(), true),
            },
            Ending::Failed => cut(connection),
            Ending::Gone => {
                (*connection).set_error(1);
                NGX_HTTP_CLIENT_CLOSED_REQUEST as ngx_int_t
            }
            Ending::TimedOut => {
                ngx_log_error!(NGX_LOG_INFO, (*connection).log, "push stream: client timed out");
                (*connection).set_timedout(1);
                NGX_HTTP_REQUEST_TIME_OUT as ngx_int_t
            }
            Ending::TooSlow => {
                ngx_log_error!(NGX_LOG_INFO, (*connection).log, "push stream: slow subscriber closed");
                cut(connection)
            }
        };
        finalize(r, code);
    }
}

/// Ends a connection on which half a message may be sent: nothing may follow it, not even the end of TLS.
unsafe fn cut(connection: *mut ngx_connection_t) -> ngx_int_t {
    // SAFETY: the connection is open.
    unsafe { (*connection).set_error(1) };
    NGX_ERROR as ngx_int_t
}

/// Answers a waiting long poll with a message.
fn answer_waiting(id: SubscriberId, answer: &Answer) {
    let Some(subscriber) = PROCESS.with(|delivery| delivery.remove(id, Ending::Regular)).flatten() else {
        return;
    };
    let text = answer.piece.bytes();
    let reply = if answer.deleted {
        Reply::Deleted { text }
    } else {
        Reply::Message {
            time: answer.time,
            tag: answer.tag,
            position: answer.position,
            text,
        }
    };
    if let Kind::Waiting(respond) = subscriber.kind {
        let code = panic_guard::request("answer", || respond(subscriber.request, reply, &answer.missed));
        finalize(subscriber.request, code);
    }
}

/// Gives a request back to nginx.
fn finalize(r: *mut ngx_http_request_t, code: ngx_int_t) {
    // SAFETY: the request is alive; connections outlive their requests, and nginx marks those that do not go on.
    unsafe {
        let connection = (*r).connection;
        ngx_http_finalize_request(r, code);
        ngx_http_run_posted_requests(connection);
    }
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
        flight: Option<NonNull<Flight>>,
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
            Kind::Stream | Kind::Socket(_) => (audience.ping_interval_ms, audience.ttl_ms),
            Kind::Waiting(_) => (None, audience.longpolling_ttl_ms),
            Kind::Answer(_) => (None, None),
        };
        let style = Style {
            format: audience.format.clone(),
            framing: enlistment.direct.unwrap_or(Framing::Raw),
            message_min: enlistment.message_min,
            padding_max: audience.padding_max.get(),
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
            })
        });
        let style = self.registry.styles.intern(style);
        let mut subscriber = Subscriber {
            request: r,
            socket: -1,
            // SAFETY: the request is valid, and keeps its connection.
            connection: unsafe { (*r).connection },
            style,
            kind,
            flight,
            joined_seq: joined.seq,
            seats: SmallVec::new(),
            address: joined.address.unwrap_or(NOWHERE),
            send_queue: Default::default(),
            replay,
            ping_due_ms: ping.map_or(NEVER, |interval| now_ms + interval),
            end_due_ms: ttl.map_or(NEVER, |ttl| now_ms + ttl),
            ending: false,
            attach_reason,
            end_reason: None,
            transit: Transit::None,
            disconnect_record: None,
            place: Default::default(),
            audience,
        };
        if let Kind::Socket(socket) = &mut subscriber.kind {
            let opening = socket.take_opening();
            subscriber.push_bytes(&opening);
        }
        if !subscriber.audience.log_disconnect.is_null()
            && let (Kind::Stream | Kind::Socket(_), Connection::Attached(mode, _)) =
                (&subscriber.kind, subscriber.connected())
        {
            // SAFETY: the connection has the address of its peer as text, as realip and the like have left it.
            let client = unsafe { (*subscriber.connection).addr_text.as_bytes() };
            let disconnect_record =
                DisconnectRecord::new(subscriber.audience.log_disconnect, client, mode, &ids, now_ms);
            subscriber.disconnect_record = Some(Box::new(disconnect_record));
        }
        let waiting = subscriber.replay.is_some() || !subscriber.send_queue.is_empty();
        let connected = subscriber.connected();
        let id = self.registry.add(subscriber, memberships, &ids);
        if ordered {
            self.inbox.ordered.add_reader(id.index, joined.position);
        }
        if let Some(worker) = &self.worker {
            worker.count_in(connected);
        }
        self.schedule(id.index, now_ms);
        if attach_reason == Some(AttachReason::Unsent) {
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

    /// Schedules a try to detach a subscriber, for when none of its handlers is running any more.
    fn settle(&mut self, id: SubscriberId) {
        self.settling.push(id);
        self.events.post_work();
    }

    /// Puts a subscriber into the timer wheel where its next ping or end is due.
    fn schedule(&mut self, index: u32, now_ms: u64) {
        let due = self
            .registry
            .slab
            .at(index)
            .map_or(NEVER, |subscriber| subscriber.next_due_ms());
        if due != NEVER {
            self.timer_wheel.put(&mut self.registry.slab, index, due, now_ms);
            self.arm_timer_wheel(now_ms);
        }
    }

    fn arm_timer_wheel(&self, now_ms: u64) {
        if let Some(delay) = self.timer_wheel.next_ms(now_ms) {
            self.events.advance_timer_wheel_in(delay);
        }
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

    /// The next step for a subscriber, as far as it must be done outside of the borrow.
    fn step(&mut self, id: SubscriberId, attempted: &mut bool, replays: &mut usize) -> Option<Next> {
        loop {
            let subscriber = self.registry.slab.get(id)?;
            if let Kind::Waiting(_) = subscriber.kind {
                return subscriber.ending.then_some(Next::End(Ending::Regular));
            }
            match subscriber.step(attempted) {
                Step::Filter(r, chain) => return Some(Next::Filter(r, chain)),
                Step::Failed => return Some(Next::End(Ending::Failed)),
                Step::Blocked => return None,
                Step::Drained => {}
            }
            let ends = subscriber.ending;
            let settles = !ends && subscriber.attach_reason == Some(AttachReason::Unsent);
            match self.replay(id, replays) {
                Replayed::Some => *attempted = false,
                Replayed::Broken => return Some(Next::End(Ending::Failed)),
                Replayed::Later => {
                    self.events.post_more_work();
                    return None;
                }
                Replayed::Nothing => {
                    if settles {
                        self.settle(id);
                    }
                    return ends.then_some(Next::End(Ending::Regular));
                }
            }
        }
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
        subscriber.end_due_ms = NEVER;
        subscriber.ping_due_ms = NEVER;
        subscriber.push_farewell();
        self.timer_wheel.remove(&mut self.registry.slab, id.index);
        self.leave_store(id.index);
        Some(Action::Advance(id))
    }

    /// Sends due pings and begins due ends.
    fn advance_timer_wheel(&mut self, actions: &mut Vec<Action>) {
        let now_ms = Now::read().monotonic_ms;
        self.timer_wheel.expire(&mut self.registry.slab, now_ms, &mut self.due);
        let mut pings = Pings::default();
        for _ in 0..DUE_PER_SLICE.min(self.due.len()) {
            let Some(index) = self.due.pop_front() else {
                break;
            };
            let Some((id, subscriber)) = self.registry.slab.named(index) else {
                continue;
            };
            if subscriber.end_due_ms <= now_ms {
                actions.extend(self.begin_end(id, Reason::Ttl));
                continue;
            }
            if subscriber.ping_due_ms <= now_ms {
                // Count from the due time, or the slots' rounding would add up.
                let beat = subscriber.ping_due_ms.max(now_ms.saturating_sub(timer_wheel::SLOT_MS));
                subscriber.postpone_ping(beat);
                match subscriber.ping(&mut pings, now_ms) {
                    Pinged::Sent => {}
                    Pinged::Queued => actions.push(Action::Advance(id)),
                    Pinged::Lost(ending) => actions.push(Action::End(id, ending)),
                }
            }
            self.schedule(index, now_ms);
        }
        if self.due.is_empty() {
            self.arm_timer_wheel(now_ms);
        } else {
            self.events.advance_timer_wheel_in(1);
        }
    }
}

/// The pings of one advance of the timer wheel, by style.
#[derive(Default)]
struct Pings(Vec<(Rc<Style>, Rc<Frames>)>);

impl Pings {
    fn of(&mut self, style: &Rc<Style>) -> Rc<Frames> {
        if let Some((_, ping)) = self.0.iter().find(|(known, _)| Rc::ptr_eq(known, style)) {
            return ping.clone();
        }
        let ping = Frames::of_bytes(&style.format.ping, style.framing);
        self.0.push((style.clone(), ping.clone()));
        ping
    }
}

/// Outcome of a ping.
enum Pinged {
    Sent,
    Queued,
    /// The peer has not answered earlier pings, or cannot be written to.
    Lost(Ending),
}

impl Subscriber {
    /// Sends a ping. Pings are skipped while data is queued.
    fn ping(&mut self, pings: &mut Pings, now_ms: u64) -> Pinged {
        if let (Kind::Socket(socket), Some(interval)) = (&mut self.kind, self.audience.ping_interval_ms)
            && !socket.ping(now_ms, interval)
        {
            self.ends(Reason::DeadPeer);
            return Pinged::Lost(Ending::Gone);
        }
        if self.is_quick() {
            return match self.send_quickly(&pings.of(&self.style), 0, None) {
                Delivered::Cut(ending) => Pinged::Lost(ending),
                _ => Pinged::Sent,
            };
        }
        if self.send_queue.is_empty() && self.replay.is_none() {
            self.send_queue.push(Piece::whole(pings.of(&self.style)));
        }
        Pinged::Queued
    }
}
