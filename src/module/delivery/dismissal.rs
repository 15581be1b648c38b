//! Sending a subject away: all its connections in this worker end, as an operator has told all workers.
//!
//! A worker acts as soon as it sees the command, before whatever it hands out, and in slices. A subscriber that is on its
//! way to another worker is known to both: the leaving worker ends it, because the other one may not know it yet; who
//! asked asks once more when some were on their way.

use push_stream_core::store::Command;
use push_stream_core::wire::dismissal::{self, Done};

use super::action::Action;
use super::ending::Reason;
use super::state::Delivery;
use super::subjects::Dismissal;
use super::subscriber::{SubscriberId, Transit};

/// Subscribers ended per slice.
const ENDS_PER_SLICE: usize = 64;

impl Delivery {
    pub fn begin_dismissal(&mut self, command: Command) {
        let mut dismissal = Dismissal {
            ids: Vec::new(),
            done: Done {
                giving: self.is_giving(),
                ..Done::default()
            },
            command,
        };
        if let Some(subject) = dismissal::read_command(&dismissal.command.text) {
            let indices = self.registry.subjects.of(subject);
            let slab = &mut self.registry.slab;
            dismissal.ids = indices.into_iter().filter_map(|index| slab.id(index)).collect();
        }
        self.dismissals.0.push_back(dismissal);
    }

    /// Ends the next subscribers, and answers when there are none left.
    pub fn dismiss_subjects(&mut self, actions: &mut Vec<Action>) {
        let mut room = ENDS_PER_SLICE;
        while let Some(mut dismissal) = self.dismissals.0.pop_front() {
            while room > 0
                && let Some(id) = dismissal.ids.pop()
            {
                room -= 1;
                self.dismiss_one(id, &mut dismissal.done, actions);
            }
            if !dismissal.ids.is_empty() {
                self.dismissals.0.push_front(dismissal);
                return;
            }
            self.answer(dismissal.command, &dismissal.done.to_text());
        }
    }

    fn dismiss_one(&mut self, id: SubscriberId, done: &mut Done, actions: &mut Vec<Action>) {
        let Some(subscriber) = self.registry.slab.get(id).filter(|subscriber| !subscriber.ending) else {
            return;
        };
        match subscriber.transit {
            Transit::Arriving => done.arriving = true,
            Transit::Leaving => done.ended += u64::from(self.note_dismissal(id.index)),
            Transit::None | Transit::Refused => {
                if let Some(action) = self.begin_end(id, Reason::SubjectDismissed) {
                    actions.push(action);
                    done.ended += 1;
                }
            }
        }
    }
}
