//! Pings and time limits: what is done when they are due.

use std::rc::Rc;

use push_stream_core::store::Now;
use push_stream_core::wire::eventsource;

use super::action::{Action, Delivered};
use super::ending::{Ending, Reason};
use super::frames::{Frames, Piece, Style};
use super::state::Delivery;
use super::subscriber::{EndCause, NEVER, Subscriber};
use super::timer_wheel;

/// Pings and ends between two looks at the clock.
const DUE_PER_TURN: usize = 32;

impl Delivery {
    /// Puts a subscriber into the timer wheel where its next ping or end is due.
    pub fn schedule(&mut self, index: u32, now_ms: u64) {
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

    /// Sends due pings and begins due ends: some of them. True if there are more.
    pub fn advance_timer_wheel(&mut self, actions: &mut Vec<Action>) -> bool {
        let now_ms = Now::read().monotonic_ms;
        self.timer_wheel.expire(&mut self.registry.slab, now_ms, &mut self.due);
        let mut pings = Pings::default();
        for _ in 0..DUE_PER_TURN.min(self.due.len()) {
            let Some(index) = self.due.pop_front() else {
                break;
            };
            let Some((id, subscriber)) = self.registry.slab.named(index) else {
                continue;
            };
            if subscriber.end_due.at_ms() <= now_ms {
                let reason = match subscriber.end_due.cause() {
                    EndCause::Ttl => Reason::Ttl,
                    EndCause::Token | EndCause::TokenTold => Reason::TokenExpired,
                };
                actions.extend(self.begin_end(id, reason));
                continue;
            }
            if subscriber.end_due.is_to_tell(subscriber.is_told_of_its_end(), now_ms) {
                let left_ms = subscriber.end_due.at_ms() - now_ms;
                subscriber.end_due = subscriber.end_due.told();
                subscriber.push_event(&eventsource::token_notice(left_ms.div_ceil(1000)));
                actions.push(Action::Advance(id));
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
        }
        !self.due.is_empty()
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
        let ping = Frames::of_ping(style);
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
        if let (Some(socket), Some(interval)) = (self.kind.socket_mut(), self.audience.ping_interval_ms)
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
        if self.is_quick_over_tls() {
            return match self.send_quickly_over_tls(&pings.of(&self.style), 0) {
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
