//! DELETE `?subject=`: an operator sends one subject's connections away, in all nginx workers.

use std::time::{Duration, Instant};

use ngx::ffi::*;
use push_stream_core::store::{Reply, Unposted};
use push_stream_core::token::subject::Subject;
use push_stream_core::wire::dismissal::{self, Done};
use push_stream_core::wire::operators;

use super::answer;
use super::channels::Path;
use super::denial::{Denial, NO_MEMORY};
use super::request::Request;
use crate::delivery::{self, Answers, Unasked};
use crate::token::subjects;

/// How long workers are asked again because connections were on their way between them.
const PATIENCE: Duration = Duration::from_secs(2);

/// What became of the request so far.
struct Round {
    subject: Subject,
    began: Instant,
    ended: u64,
    /// Connections were on their way: all workers are asked once more.
    again: bool,
}

/// Handles the request, whose body was read.
pub fn dismiss(r: Request<'_>, subject: &[u8]) -> Result<ngx_int_t, Denial> {
    if subject.is_empty() {
        return Err(Denial::Argument("Argument subject is empty."));
    }
    if !Path::of(r)?.is_empty() {
        return Err(Denial::Argument("Argument subject does not go with channels."));
    }
    // Tokens are JSON: what is no text is nobody's.
    let subject = str::from_utf8(subject).map_err(|_| Denial::Argument("Argument subject is no text."))?;
    let Some(subject) = subjects::hash(subject) else {
        // No configuration of this nginx has had tokens.
        return tell(r, 0, 0);
    };
    ask(
        r,
        Round {
            subject,
            began: Instant::now(),
            ended: 0,
            again: false,
        },
    )
}

fn ask(r: Request<'_>, round: Round) -> Result<ngx_int_t, Denial> {
    let processes = delivery::with_store(|worker| worker.processes()).ok_or(Denial::Unavailable)?;
    let command = dismissal::command(round.subject);
    let then = move |r: Request<'_>, answers| answer::conclude(r, conclude(r, round, answers));
    let asked = delivery::ask(r, &processes, delivery::DISMISS, &command, Box::new(then));
    asked.map_err(|unasked| match unasked {
        Unasked::NoMemory => NO_MEMORY,
        Unasked::Unposted(Unposted::Busy) => Denial::Busy("Too many commands wait for the workers."),
        Unasked::Unposted(Unposted::Refused(refusal)) => refusal.into(),
        Unasked::Unavailable | Unasked::Unposted(_) => Denial::Unavailable,
    })
}

fn conclude(r: Request<'_>, mut round: Round, answers: Answers) -> Result<ngx_int_t, Denial> {
    let mut unanswered = answers.missing + answers.refused;
    let (mut giving, mut arriving) = (false, false);
    for answer in answers.answers {
        match answer.reply {
            Reply::Text(text) => match Done::read(&text) {
                Some(done) => {
                    round.ended += done.ended;
                    giving |= done.giving;
                    arriving |= done.arriving;
                }
                None => unanswered += 1,
            },
            // It has died, and its connections with it.
            Reply::Gone => {}
        }
    }
    let again = giving && !round.again || arriving;
    if unanswered == 0 && again && round.began.elapsed() < PATIENCE {
        round.again = true;
        return ask(r, round);
    }
    tell(r, round.ended, unanswered + usize::from(arriving))
}

fn tell(r: Request<'_>, ended: u64, unanswered: usize) -> Result<ngx_int_t, Denial> {
    let mut body = Vec::new();
    operators::push_ended(ended, unanswered as u64, &mut body);
    if unanswered == 0 {
        return answer::with_body(r, "application/json", body);
    }
    r.add_header("X-Nginx-PushStream-Explain", b"Not all workers have answered.")?;
    answer::with_status(r, NGX_HTTP_GATEWAY_TIME_OUT, "application/json", body)
}
