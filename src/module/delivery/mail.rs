//! Commands in the zone and their answers: both ways between this nginx worker and the others, itself among them.

use ngx::ffi::ngx_int_t;
use push_stream_core::store::{Now, Process, Unposted};

use super::action::Action;
use super::asking::{Answered, Answers, Then, Unasked, Waiting};
use super::state::{Delivery, PROCESS};
use super::subjects::DISMISS;
use crate::ffi::parked::{self, Fate};
use crate::ffi::request::Request;

/// How long a request waits for answers.
const PATIENCE_MS: u64 = 2000;

const FATE: Fate = Fate {
    late: |number| {
        let waiting = PROCESS.with(|delivery| delivery.give_up(number)).flatten();
        if let Some(Waiting { then, answers }) = waiting {
            parked::resume(number, |r| then(r, answers));
        }
    },
    gone: |number| {
        PROCESS.with(|delivery| delivery.give_up(number));
    },
};

/// Sends the command to all these processes; `then` answers the request when they all have, or time is over. The error is
/// that of the last, if it could be sent to none. Returns the handler's return value.
pub fn ask(r: Request<'_>, to: &[Process], kind: u16, text: &[u8], then: Then) -> Result<ngx_int_t, Unasked> {
    let number = PROCESS
        .with(|delivery| delivery.send_command(to, kind, text, then))
        .unwrap_or(Err(Unasked::Unavailable))?;
    parked::park(r, number, PATIENCE_MS, FATE).ok_or_else(|| {
        PROCESS.with(|delivery| delivery.give_up(number));
        Unasked::NoMemory
    })
}

impl Delivery {
    /// Looks for commands and answers in the zone. What sends subjects away does not wait for messages, as changes do.
    pub fn look_for_mail(&mut self, actions: &mut Vec<Action>) {
        if self.worker.as_ref().is_some_and(|worker| worker.has_mail()) {
            self.take_answers(actions);
            while self.worker.as_ref().and_then(|worker| worker.next_command()) == Some(DISMISS)
                && let Some(command) = self.worker.as_mut().and_then(|worker| worker.take_command())
            {
                self.begin_dismissal(command);
            }
            self.control.waiting = self.worker.as_ref().is_some_and(|worker| worker.has_commands());
        }
    }

    fn send_command(&mut self, to: &[Process], kind: u16, text: &[u8], then: Then) -> Result<u64, Unasked> {
        let worker = self.worker.as_mut().ok_or(Unasked::Unavailable)?;
        self.asking.last += 1;
        let number = self.asking.last;
        let now = Now::read();
        let (mut missing, mut not_sent) = (0, 0);
        let mut refused = Unasked::Unposted(Unposted::Gone);
        for &process in to {
            match worker.command(process, kind, number, text, now) {
                Ok(()) => missing += 1,
                Err(unposted) => {
                    not_sent += usize::from(unposted != Unposted::Gone);
                    refused = Unasked::Unposted(unposted);
                }
            }
        }
        if missing == 0 {
            return Err(refused);
        }
        let answers = Answers {
            missing,
            refused: not_sent,
            ..Answers::default()
        };
        self.asking.waiting.insert(number, Waiting { then, answers });
        self.look_if_woken();
        Ok(number)
    }

    /// Takes a request off the list, and its commands back as far as nobody has taken them.
    fn give_up(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.asking.waiting.remove(&number)?;
        if let Some(worker) = &mut self.worker {
            while worker.withdraw(number) {}
        }
        Some(waiting)
    }

    /// Takes the answers for this worker's requests.
    pub fn take_answers(&mut self, actions: &mut Vec<Action>) {
        while let Some(answer) = self.worker.as_mut().and_then(|worker| worker.take_answer()) {
            let number = answer.request;
            let Some(waiting) = self.asking.waiting.get_mut(&number) else {
                // It has given up.
                continue;
            };
            waiting.answers.answers.push(answer);
            waiting.answers.missing -= 1;
            if waiting.answers.missing == 0
                && let Some(Waiting { then, answers }) = self.asking.waiting.remove(&number)
            {
                actions.push(Action::Resume(Answered { number, then, answers }));
            }
        }
    }
}
