//! Notices: messages by which the subscribers of a channel learn that it is deleted, or that they are dismissed.

use super::layout::*;
use super::memory::Locked;
use super::messages::Shape;
use super::*;

impl Worker {
    /// Deletes the existing channels of `ids`, all or none; every subscriber gets `notice` as a
    /// [`MessageKind::Deleted`]. Returns the number of channels deleted.
    pub fn delete(&mut self, ids: &[&[u8]], notice: &[u8], now: Now) -> Result<usize, Refusal> {
        self.notify(ids, notice, link_flag::NOTICE, now, |locked, channels| {
            for &channel in channels {
                locked.delete(channel);
            }
            channels.len()
        })
    }

    /// Dismisses all subscribers of the existing channels of `ids`, all or none; the channels stay. Returns their
    /// figures from before.
    pub fn dismiss(&mut self, ids: &[&[u8]], now: Now) -> Result<Vec<ChannelInfo>, Refusal> {
        let hashes = self.hashes(ids.iter().copied());
        let flags = link_flag::NOTICE | link_flag::DISMISSAL;
        self.notify(ids, b"", flags, now, |locked, _| {
            let found = ids.iter().zip(&hashes).filter_map(|(id, &hash)| locked.find(hash, id));
            found.map(|channel| locked.info(channel)).collect()
        })
    }

    /// Changes the existing channels of `ids` and sends their subscribers a notice, in one mutation.
    fn notify<T>(
        &mut self,
        ids: &[&[u8]],
        notice: &[u8],
        flags: u16,
        now: Now,
        mut act: impl FnMut(&mut Locked<'_>, &[ChannelRef]) -> T,
    ) -> Result<T, Refusal> {
        let hashes = self.hashes(ids.iter().copied());
        let cost = self.cost(ids.iter().copied());
        let limits = self.limits.clone();
        let slot = self.slot;
        // The notice is made only if there are subscribers; it has room for this number of channels.
        let mut draft: Option<(Draft, usize)> = None;
        loop {
            let named = hashes.iter().copied().zip(ids.iter().copied());
            let attempt = self.mutate(cost, named, now, |locked| {
                let mut channels = Vec::with_capacity(ids.len());
                for (id, &hash) in ids.iter().zip(&hashes) {
                    channels.extend(locked.find(hash, id).filter(|channel| !channels.contains(channel)));
                }
                let followed: Vec<_> = channels
                    .iter()
                    .copied()
                    .filter(|&channel| locked.get(channel, channel::members) != MemberRef::NONE)
                    .collect();
                if followed.len() > draft.as_ref().map_or(0, |&(_, room)| room) {
                    return Ok(Notified::Followed(followed.len()));
                }
                let result = act(locked, &channels);
                if let Some((draft, _)) = draft.as_ref().filter(|_| !followed.is_empty()) {
                    let shape = Shape { flags, ..draft.shape };
                    locked.link_reserved(slot, &followed, shape, draft.block, None, &limits);
                }
                Ok(Notified::Done(result))
            });
            match attempt {
                Ok(Notified::Followed(count)) => {
                    let mut made = self.draft(notice.len(), None, None, count, now)?;
                    self.write(&mut made, notice);
                    draft = Some((made, count));
                }
                Ok(Notified::Done(result)) => {
                    self.unreserve();
                    return Ok(result);
                }
                Err(refusal) => {
                    self.unreserve();
                    return Err(refusal);
                }
            }
        }
    }
}

/// Progress of an attempt with a notice.
enum Notified<T> {
    Done(T),
    /// This many channels have subscribers to notify, which takes a message.
    Followed(usize),
}
