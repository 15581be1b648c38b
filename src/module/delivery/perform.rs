//! Performing actions: sending to subscribers, answering and ending them, while the module's state is not borrowed.

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::AttachReason;

use super::action::{Action, Answer};
use super::ending::Ending;
use super::hand_out::Replayed;
use super::output::Step;
use super::state::{Delivery, PROCESS};
use super::subscriber::{Kind, Reply, SubscriberId};
use super::{lingering_close, output, stream};
use crate::ffi::{body, panic_guard};

/// Performs the actions left by a slice of work or an expired timer.
pub fn perform(actions: Vec<Action>) {
    for action in actions {
        match action {
            Action::Advance(id) => advance(id),
            Action::Answer(id, answer) => answer_waiting(id, &answer),
            Action::End(id, ending) => end(id, ending),
            Action::Resume(answered) => answered.resume(),
        }
    }
}

/// Sends to a subscriber until its socket is full or nothing is left to send.
pub fn advance(id: SubscriberId) {
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
pub fn end(id: SubscriberId, ending: Ending) {
    let removed = PROCESS.with(|delivery| {
        let missed = delivery.inbox.ordered.take_missed(id.index);
        Some((delivery.remove(id, ending)?, missed))
    });
    let Some((mut subscriber, missed)) = removed.flatten() else {
        return;
    };
    if subscriber.is_stream() {
        return stream::close(subscriber, ending);
    }
    if subscriber.is_detached() {
        return lingering_close::close(subscriber, ending);
    }
    let r = subscriber.request;
    // SAFETY: the subscriber was registered until now, so its request is alive.
    unsafe {
        let connection = (*r).connection;
        let code = match ending {
            Ending::Regular => match subscriber.kind {
                Kind::Stream => body::send(r, subscriber.audience.footer.clone(), true),
                Kind::Compressed(_) => body::send(r, subscriber.compressed_end(), true),
                // Its last frames were in the send queue.
                Kind::Socket(_) | Kind::Deflated(_) => {
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

/// The guard for handlers of one subscriber: after a panic its connection ends.
pub fn subscriber_event(entry: &str, id: SubscriberId, body: impl FnOnce()) {
    panic_guard::guard(entry, || panic_guard::event("end", || end(id, Ending::Failed)), body);
}

impl Delivery {
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
}
