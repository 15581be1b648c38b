//! Subscribers join and leave; a join also selects their old messages.

use smallvec::SmallVec;

use super::api::ReplayPart;
use super::history::{SEEK_LINKS, Seek};
use super::ids::ZONE_NEWEST;
use super::layout::*;
use super::memory::{Locked, Stop};
use super::*;
use crate::wire::event_id::OrderedId;

/// How often a join searches in bounded holds, outside its mutation; after that it searches to the end inside.
const SEEKS: u32 = 16;

impl Worker {
    /// Would the existing channels of `request` admit it? Changes nothing, and does not check its address.
    pub fn admits(&self, request: &JoinRequest) -> Result<(), Refusal> {
        let hashes = self.hashes(request.channels.iter().map(|channel| channel.id));
        self.memory().lock().admit(request, &hashes, &self.limits)
    }

    /// Admits a subscriber (limits and existence only: the grammar of ids is the caller's), creates unknown
    /// channels, selects old messages and registers, all in one step.
    pub fn join(&mut self, request: &JoinRequest, now: Now) -> Result<Joined, Refusal> {
        let hashes = self.hashes(request.channels.iter().map(|channel| channel.id));
        let address_hash = request.address.map_or(0, |address| self.memory().hash(address.key));
        let keys = request.address.iter().map(|address| address.key);
        let cost = self
            .cost(request.channels.iter().map(|channel| channel.id).chain(keys))
            .with_entering();
        let slot = self.slot;
        let limits = self.limits.clone();
        let mut seeks: SmallVec<[Option<Seek>; 1]> = request.channels.iter().map(|_| None).collect();
        for attempt in 1.. {
            let budget = if attempt <= SEEKS { SEEK_LINKS } else { u32::MAX };
            let named = hashes
                .iter()
                .copied()
                .zip(request.channels.iter().map(|channel| channel.id));
            let joined = self.mutate(cost, named, now, |locked| {
                locked.admit(request, &hashes, &limits).map_err(Stop::Refused)?;
                let mut channels: SmallVec<[ChannelRef; 4]> = SmallVec::with_capacity(hashes.len());
                for (channel, &hash) in request.channels.iter().zip(&hashes) {
                    channels.push(locked.find_or_create(hash, channel.id, &limits)?);
                }
                if !locked.seek_all(request, &channels, &mut seeks, budget) {
                    return Ok(None);
                }
                // Events that the join itself causes, in the events channel, are live.
                let seq = locked.hot(hot::seq);
                let gaps = locked.gaps(request, &channels, &seeks);
                let (replay, bound) = locked.select_old(request, &channels, &mut seeks);
                let position = locked.position_after(request, &channels, replay.is_some(), !gaps.is_empty());
                let subscribes = match request.mode {
                    JoinMode::Stream | JoinMode::Further => true,
                    JoinMode::LongPoll => replay.is_none(),
                    JoinMode::Poll => false,
                };
                let mut memberships = Memberships::new();
                let mut address = None;
                if let Some(limit) = request.address.filter(|_| subscribes) {
                    let entry = locked.address(address_hash, limit.key)?;
                    if locked.get(entry, channel::subscribers) >= limit.max {
                        return Err(Stop::Refused(Refusal::TooManyFromAddress));
                    }
                    address = Some(Membership(locked.enter(entry, slot)?.0));
                }
                if subscribes {
                    memberships.reserve(channels.len());
                    for &channel in &channels {
                        memberships.push(Membership(locked.enter(channel, slot)?.0));
                        locked.touch(channel, &limits);
                    }
                    if request.mode != JoinMode::Further {
                        locked.add(slot, slot::subscribers, 1);
                    }
                }
                Ok(Some(Joined {
                    memberships,
                    address,
                    seq,
                    replay,
                    bound,
                    gaps,
                    position,
                }))
            })?;
            if let Some(joined) = joined {
                return Ok(joined);
            }
            while !self.step(|locked, _| locked.go_on_seeking(request, &mut seeks)) {}
        }
        unreachable!("a search without a limit comes to its end")
    }

    /// Ends one subscriber's memberships. `subscriber_gone` = it no longer counts as connected (false when it only lost
    /// a deleted channel and keeps others).
    pub fn leave(&mut self, memberships: &[Membership], subscriber_gone: bool) {
        for (index, membership) in memberships.iter().enumerate() {
            let member = MemberRef(membership.0);
            let counted = subscriber_gone && index == 0;
            let mut empty = self.step(|locked, slot| {
                locked.make_event_room();
                if counted {
                    locked.sub(slot, slot::subscribers, 1);
                }
                locked.discount(member)
            });
            // Messages that this worker will not read any more are released in bounded holds.
            while empty {
                empty = self.step(|locked, _| {
                    for _ in 0..32 {
                        if locked.forget_one(member) {
                            locked.dissolve(member);
                            return false;
                        }
                        if locked.nearly_full() {
                            break;
                        }
                    }
                    true
                });
            }
        }
        if memberships.is_empty() && subscriber_gone {
            self.step(|locked, slot| locked.sub(slot, slot::subscribers, 1));
        }
    }
}

impl Locked<'_> {
    fn admit(&self, request: &JoinRequest, hashes: &[u32], limits: &Limits) -> Result<(), Refusal> {
        for (wanted, &hash) in request.channels.iter().zip(hashes) {
            let channel = self.find(hash, wanted.id);
            if request.authorized_channels_only && !limits.is_wildcard(wanted.id) {
                let stored = channel.map_or(0, |channel| self.get(channel, channel::stored));
                if stored == 0 {
                    return Err(Refusal::MayNotCreate);
                }
            }
            if let (Some(max), Some(channel)) = (limits.max_subscribers_per_channel, channel)
                && self.get(channel, channel::subscribers) >= max
            {
                return Err(Refusal::TooManySubscribers);
            }
            if !request.may_follow_events && limits.is_events(wanted.id) {
                return Err(Refusal::EventsChannel);
            }
        }
        Ok(())
    }

    /// Searches for the beginning of the old messages that the request wants. False if the budget is used up before.
    fn seek_all(
        &self,
        request: &JoinRequest,
        channels: &[ChannelRef],
        seeks: &mut [Option<Seek>],
        mut budget: u32,
    ) -> bool {
        let mut done = true;
        for (index, (&channel, seek)) in channels.iter().zip(seeks).enumerate() {
            let Some(aim) = self.aim(request, index, channel) else {
                *seek = None;
                continue;
            };
            if !seek.as_ref().is_some_and(|seek| self.is_seek_for(seek, channel, aim)) {
                *seek = Some(self.begin_seek(channel, aim));
            }
            if let Some(seek) = seek {
                done &= self.seek(request, seek, &mut budget);
            }
        }
        done
    }

    /// Continues the unfinished searches for one slice; true if all are complete.
    fn go_on_seeking(&self, request: &JoinRequest, seeks: &mut [Option<Seek>]) -> bool {
        let mut budget = SEEK_LINKS;
        seeks
            .iter_mut()
            .flatten()
            .all(|seek| self.seek(request, seek, &mut budget))
    }

    /// The channels in which the client has missed messages.
    fn gaps(&self, request: &JoinRequest, channels: &[ChannelRef], seeks: &[Option<Seek>]) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (index, (&channel, seek)) in channels.iter().zip(seeks).enumerate() {
            if self.has_gap(request, channel) {
                gaps.push(Gap {
                    path_index: index as u32,
                    first: seek.as_ref().and_then(|seek| seek.first_id(self)),
                });
            }
        }
        gaps
    }

    /// The client's position once it has its old messages, if it has any.
    fn position_after(
        &self,
        request: &JoinRequest,
        channels: &[ChannelRef],
        replays: bool,
        has_gap: bool,
    ) -> Option<OrderedId> {
        let highest = |id_of: fn(&Self, ChannelRef) -> Option<OrderedId>| {
            channels.iter().filter_map(|&channel| id_of(self, channel)).max()
        };
        let of_channels = if replays { highest(Self::newest_id) } else { None };
        let reached = of_channels.or(self.ordered_id(ZoneIds, ZONE_NEWEST));
        if has_gap {
            // As a position to resume from, this is no gap any more.
            return reached.max(highest(Self::lost_id)).or(Some(OrderedId::LOWEST));
        }
        let asked = request.position.event_id.and_then(OrderedId::parse);
        reached.max(asked.filter(|_| request.ordered))
    }

    /// Selects the request's old messages, and the resulting position.
    fn select_old(
        &self,
        request: &JoinRequest,
        channels: &[ChannelRef],
        seeks: &mut [Option<Seek>],
    ) -> (Option<Replay>, Option<(u64, u32)>) {
        let position = &request.position;
        let mut replay = Replay {
            parts: Default::default(),
            ordered: request.ordered,
            lost: false,
            gaps: Vec::new(),
        };
        let mut bound = (position.time.unwrap_or(0), position.tag.unwrap_or(0));
        for (index, (&channel, seek)) in channels.iter().zip(seeks).enumerate() {
            let Some(seek) = seek.take().filter(|seek| !seek.is_empty()) else {
                continue;
            };
            replay.parts.push_back(ReplayPart::new(self, index, seek));
            let newest = (
                self.get(channel, channel::newest_time).into(),
                self.get(channel, channel::newest_tag),
            );
            bound = bound.max(newest);
        }
        if replay.parts.is_empty() {
            (None, None)
        } else {
            (Some(replay), Some(bound))
        }
    }
}
