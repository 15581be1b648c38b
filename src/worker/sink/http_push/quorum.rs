//! The number of nodes that must have an event.

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::config::section::{FromItem, Item};
use crate::engine::settlement::Reply;
use crate::sink::Verdict;

/// `required = "all"`, `"quorum"`, `"any"`, or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Required {
    All,
    Quorum,
    Any,
    Number(usize),
}

impl Required {
    pub fn of(self, nodes: usize) -> usize {
        match self {
            Self::All => nodes,
            Self::Quorum => nodes / 2 + 1,
            Self::Any => 1,
            Self::Number(number) => number,
        }
    }
}

impl FromItem for Required {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        if let Some(number) = item.integer() {
            return Some(Self::Number(number));
        }
        match String::from_item(item)?.as_str() {
            "all" => Some(Self::All),
            "quorum" => Some(Self::Quorum),
            "any" => Some(Self::Any),
            other => {
                item.complain(format!("\"{other}\" is not \"all\", \"quorum\", \"any\" or a number"));
                None
            }
        }
    }
}

/// Counts the nodes' verdicts on one event and answers as soon as it is settled.
pub struct Quorum(Mutex<Count>);

struct Count {
    /// Nodes without a final verdict.
    open: usize,
    needed: usize,
    accepted: usize,
    refusal: Option<(String, u32)>,
    reply: Option<Reply>,
}

impl Quorum {
    /// With a receiver for the verdict.
    pub fn awaited(nodes: usize, needed: usize) -> (Self, oneshot::Receiver<Verdict>) {
        let (reply, verdict) = oneshot::channel();
        (Self::new(nodes, needed, Reply::Waiting(reply)), verdict)
    }

    pub fn new(nodes: usize, needed: usize, reply: Reply) -> Self {
        let count = Count {
            open: nodes,
            needed,
            accepted: 0,
            refusal: None,
            reply: Some(reply),
        };
        Self(Mutex::new(count))
    }

    /// A node accepted it.
    pub fn accept(&self) {
        let mut count = self.0.lock();
        count.open -= 1;
        count.accepted += 1;
        if count.accepted == count.needed {
            settle(count, Verdict::Accepted);
        }
    }

    /// A node refused it for good.
    pub fn refuse(&self, reason: String, attempts: u32) {
        let mut count = self.0.lock();
        count.open -= 1;
        count.refusal.get_or_insert((reason, attempts));
        if count.accepted + count.open < count.needed
            && let Some((reason, attempts)) = count.refusal.take()
        {
            settle(count, Verdict::Refused { reason, attempts });
        }
    }

    /// Another worker has claimed it.
    pub fn release(&self) {
        settle(self.0.lock(), Verdict::Released);
    }

    /// Is the verdict settled? Then a node that lags behind may skip the event.
    pub fn is_settled(&self) -> bool {
        self.0.lock().reply.is_none()
    }
}

/// Sends the verdict once, outside the lock.
fn settle(mut count: MutexGuard<'_, Count>, verdict: Verdict) {
    let reply = count.reply.take();
    drop(count);
    if let Some(reply) = reply {
        reply.tell(verdict);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(needed: usize, nodes: &[bool]) -> Option<bool> {
        let (quorum, mut verdict) = Quorum::awaited(3, needed);
        for (n, &ok) in nodes.iter().enumerate() {
            if ok {
                quorum.accept()
            } else {
                quorum.refuse(format!("node {n}"), 1)
            }
        }
        verdict.try_recv().ok().map(|verdict| verdict == Verdict::Accepted)
    }

    #[test]
    fn an_event_is_settled_as_soon_as_the_answer_cannot_change() {
        let (all, quorum, any) = (Required::All.of(3), Required::Quorum.of(3), Required::Any.of(3));
        assert_eq!((all, quorum, any), (3, 2, 1));
        assert_eq!(verdict(all, &[true, true]), None);
        assert_eq!(verdict(all, &[true, true, true]), Some(true));
        assert_eq!(verdict(all, &[false]), Some(false));
        assert_eq!(verdict(quorum, &[false, true]), None);
        assert_eq!(verdict(quorum, &[false, true, true]), Some(true));
        assert_eq!(verdict(quorum, &[false, true, false]), Some(false));
        assert_eq!(verdict(any, &[false, false]), None);
        assert_eq!(verdict(any, &[false, false, false]), Some(false));
        assert_eq!(verdict(any, &[true]), Some(true));
    }

    #[test]
    fn the_first_reason_is_told() {
        let (quorum, mut verdict) = Quorum::awaited(2, 1);
        quorum.refuse("first".into(), 1);
        quorum.refuse("second".into(), 2);
        let expected = Verdict::Refused {
            reason: "first".into(),
            attempts: 1,
        };
        assert_eq!(verdict.try_recv(), Ok(expected));
        assert!(quorum.is_settled());
    }
}
