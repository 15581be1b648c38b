//! The http block's own directives.

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::ptr;
use std::rc::Rc;

use ngx::ffi::*;
use ngx::{ngx_conf_log_error, ngx_string};
use push_stream_core::store::{Events, Limits, OnFull, Zone};
use push_stream_core::wire::statistics;

use super::place::Place;
use super::values::{REPORTED, given, given_ms, refuse, unset, word};
use super::zone;
use crate::delivery::{Audience, Format};
use crate::ffi::directive::Conf;
use crate::ffi::shared_memory;
use crate::token::Tokens;

/// `push_stream_on_full`.
pub static mut ON_FULL: [ngx_conf_enum_t; 3] = [
    word(ngx_string!("refuse"), 0),
    word(ngx_string!("evict"), 1),
    word(ngx_str_t::empty(), 0),
];

const EVICT: ngx_uint_t = 1;

/// Default of `push_stream_idempotent_window`.
const IDEMPOTENT_WINDOW: u32 = 1024;

/// The http block as written, and the results derived from it ([`Main::settings`], [`Main::zone`]).
pub struct Main {
    cycle: *mut ngx_cycle_t,
    pub(super) zones: Vec<zone::Wanted>,
    pub(super) channel_deleted_text: ngx_str_t,
    pub(super) channel_inactivity_secs: time_t,
    pub(super) ping_text: ngx_str_t,
    pub(super) timeout_with_body: ngx_flag_t,
    pub(super) message_ttl_secs: time_t,
    pub(super) max_subscribers_per_channel: ngx_int_t,
    pub(super) max_subscribers_per_address: ngx_int_t,
    pub(super) max_stored_per_channel: ngx_int_t,
    pub(super) max_channel_id_length: ngx_int_t,
    pub(super) max_channels: ngx_int_t,
    pub(super) max_wildcard_channels: ngx_int_t,
    pub(super) wildcard_prefix: ngx_str_t,
    pub(super) events_channel_id: ngx_str_t,
    pub(super) on_full: ngx_uint_t,
    pub(super) idempotent_window: ngx_int_t,
    /// Some directive needs the zone to track the order of ids.
    pub(super) track_ids: bool,
    /// Some location assigns ids to messages.
    pub(super) auto_ids: bool,
    pub(super) drain_time_ms: ngx_msec_t,
    pub(super) handover: ngx_flag_t,
    /// Some location has a role.
    pub used: bool,
    /// Where the first location with a role is written.
    pub(super) first_used: Option<Place>,
    /// Where limits are written, by the offsets of their fields.
    pub(super) limits_written: Vec<(usize, Option<Place>)>,
    /// The zone of this cycle; NULL if no size was given.
    pub zone: *mut ngx_shm_zone_t,
    /// Set when the block has been read.
    pub settings: Option<Rc<Settings>>,
    /// Every distinct format of messages in the configuration.
    pub(super) formats: Vec<Rc<Format>>,
    /// The largest padding of the whole configuration, in bytes.
    pub(super) padding_max: Rc<Cell<u32>>,
    /// The largest `push_stream_statistics_channels` of the whole configuration.
    pub(super) statistics_channels: Rc<Cell<u32>>,
    /// Servers with a location whose TLS is taken over, as their configurations of all modules.
    pub(super) tls_servers: Vec<*mut *mut c_void>,
    /// The audiences of all subscriber locations.
    pub(super) audiences: Rc<RefCell<Vec<Rc<Audience>>>>,
    /// Access tokens: key files, and what was verified with them.
    pub tokens: Rc<Tokens>,
}

/// Settings of the http block that requests and delivery need.
#[derive(Debug)]
pub struct Settings {
    pub limits: Rc<Limits>,
    /// Text of the notice when a channel is deleted and the request brings none.
    pub channel_deleted_text: Vec<u8>,
    pub ping_text: Vec<u8>,
    /// A long poll that times out gets a message instead of a 304.
    pub timeout_with_body: bool,
    /// New subscribers from an address with this many are refused.
    pub max_subscribers_per_address: Option<u32>,
    /// Bytes.
    pub max_channel_id_length: Option<usize>,
    /// For how many of the busiest channels there are statistics; final once all of the configuration was read.
    pub statistics_channels: Rc<Cell<u32>>,
    /// Time over which a leaving worker spreads the end of its subscribers; 0 = at once.
    pub drain_time_ms: u64,
    /// Does a leaving worker hand its subscribers over to another one?
    pub handover: bool,
    /// The audiences of all subscriber locations, in the order of the configuration; complete once all of it was read.
    pub audiences: Rc<RefCell<Vec<Rc<Audience>>>>,
    /// Those of [`Main`].
    pub tokens: Rc<Tokens>,
}

pub unsafe extern "C" fn create(cf: *mut ngx_conf_t) -> *mut c_void {
    // SAFETY: nginx passes it.
    let conf = unsafe { Conf::new(cf) };
    let main = Main {
        // It outlives this structure, which is in its pool.
        cycle: conf.cycle(),
        zones: Vec::new(),
        channel_deleted_text: ngx_str_t::empty(),
        channel_inactivity_secs: unset::SECONDS,
        ping_text: ngx_str_t::empty(),
        timeout_with_body: unset::FLAG,
        message_ttl_secs: unset::SECONDS,
        max_subscribers_per_channel: unset::NUMBER,
        max_subscribers_per_address: unset::NUMBER,
        max_stored_per_channel: unset::NUMBER,
        max_channel_id_length: unset::NUMBER,
        max_channels: unset::NUMBER,
        max_wildcard_channels: unset::NUMBER,
        wildcard_prefix: ngx_str_t::empty(),
        events_channel_id: ngx_str_t::empty(),
        on_full: unset::ENUM,
        idempotent_window: unset::NUMBER,
        track_ids: false,
        auto_ids: false,
        drain_time_ms: unset::MSEC,
        handover: unset::FLAG,
        used: false,
        first_used: None,
        limits_written: Vec::new(),
        zone: ptr::null_mut(),
        settings: None,
        formats: Vec::new(),
        padding_max: Rc::default(),
        statistics_channels: Rc::default(),
        tls_servers: Vec::new(),
        audiences: Rc::default(),
        tokens: Rc::default(),
    };
    conf.place(main)
}

/// Runs when the whole http block was read, before servers and locations are merged.
pub unsafe extern "C" fn init(cf: *mut ngx_conf_t, made: *mut c_void) -> *mut c_char {
    // SAFETY: nginx passes what `create` made.
    let (conf, main) = unsafe { (Conf::new(cf), &mut *made.cast::<Main>()) };
    if main.used && main.zones.is_empty() {
        let refuse = || refuse(conf, c"push_stream_shared_memory_size must be set.");
        return Place::during(main.first_used, conf, refuse);
    }
    if main.used
        && let Some((name, place)) = main.zero_limit()
    {
        let log = || {
            ngx_conf_log_error!(NGX_LOG_ERR, conf.raw(), "push stream module: {name} cannot be zero.");
        };
        Place::during(place, conf, log);
        return REPORTED;
    }
    main.settings = Some(Rc::new(main.settle()));
    // SAFETY: the configuration outlives the zone's registration in this cycle.
    match unsafe { zone::add(conf, &main.zones, made.cast()) } {
        Ok(zone) => {
            main.zone = zone;
            ptr::null_mut()
        }
        Err(reported) => reported,
    }
}

impl Main {
    /// The first directive whose value must not be zero but is, in the C module's order, and where it is written.
    fn zero_limit(&self) -> Option<(&'static str, Option<Place>)> {
        macro_rules! limit {
            ($name:literal, $field:ident) => {
                ($name, self.$field == 0, offset_of!(Main, $field))
            };
        }
        let (name, _, offset) = [
            limit!("push_stream_max_number_of_channels", max_channels),
            limit!("push_stream_max_number_of_wildcard_channels", max_wildcard_channels),
            limit!("push_stream_message_ttl", message_ttl_secs),
            limit!("push_stream_max_subscribers_per_channel", max_subscribers_per_channel),
            limit!("push_stream_max_subscribers_per_address", max_subscribers_per_address),
            limit!("push_stream_max_messages_stored_per_channel", max_stored_per_channel),
            limit!("push_stream_max_channel_id_length", max_channel_id_length),
            limit!("push_stream_idempotent_window", idempotent_window),
        ]
        .into_iter()
        .find(|(_, zero, _)| *zero)?;
        let written = self.limits_written.iter().find(|(written, _)| *written == offset);
        Some((name, written.and_then(|(_, place)| *place)))
    }

    /// Fills in the defaults.
    fn settle(&self) -> Settings {
        Settings {
            limits: Rc::new(Limits {
                message_ttl_secs: secs(self.message_ttl_secs, 30 * 60),
                channel_inactivity_secs: secs(self.channel_inactivity_secs, 30),
                max_stored_per_channel: given(self.max_stored_per_channel),
                max_subscribers_per_channel: given(self.max_subscribers_per_channel),
                max_channels: given(self.max_channels),
                max_wildcard_channels: given(self.max_wildcard_channels),
                wildcard_prefix: self.wildcard_prefix.as_bytes().to_vec(),
                on_full: if self.on_full == EVICT {
                    OnFull::Evict
                } else {
                    OnFull::Refuse
                },
                events: events(self.events_channel_id.as_bytes()),
                track_ids: self.track_ids,
                auto_ids: self.auto_ids,
                idempotent_window: given(self.idempotent_window).unwrap_or(IDEMPOTENT_WINDOW),
            }),
            channel_deleted_text: text(&self.channel_deleted_text, b"Channel deleted"),
            ping_text: text(&self.ping_text, b" "),
            timeout_with_body: self.timeout_with_body == 1,
            max_subscribers_per_address: given(self.max_subscribers_per_address),
            max_channel_id_length: given(self.max_channel_id_length).map(|length| length as usize),
            statistics_channels: self.statistics_channels.clone(),
            drain_time_ms: given_ms(self.drain_time_ms).unwrap_or(0),
            handover: self.handover != 0,
            audiences: self.audiences.clone(),
            tokens: self.tokens.clone(),
        }
    }

    /// This cycle's zone, once it is mapped.
    pub fn open_zone(&self) -> Option<Zone> {
        // SAFETY: the pointer is NULL or the zone that `zone::add` registered in this cycle.
        unsafe { shared_memory::open(self.zone) }
    }

    /// Makes the eventfds that wake workers, unless an earlier cycle did: old and new workers share them.
    pub fn prepare_wake_fds(&self) -> std::io::Result<()> {
        match self.open_zone() {
            Some(zone) => zone::prepare_wake_fds(&zone),
            None => Ok(()),
        }
    }

    /// `worker_processes`, once the whole configuration was read.
    pub(super) fn worker_processes(&self) -> usize {
        // SAFETY: the cycle outlives this structure, and the core module has a configuration in every cycle.
        let workers = unsafe {
            let index = ngx_core_module.index;
            (*(*self.cycle).conf_ctx.add(index).read().cast::<ngx_core_conf_t>()).worker_processes
        };
        usize::try_from(workers).unwrap_or(1)
    }

    /// Finds an equal format or adds this one, so that equal templates are rendered once.
    pub(super) fn intern(&mut self, format: Format) -> Rc<Format> {
        if let Some(known) = self.formats.iter().find(|known| ***known == format) {
            return known.clone();
        }
        let format = Rc::new(format);
        self.formats.push(format.clone());
        format
    }
}

/// `push_stream_events_channel_id`; without it no events are published.
fn events(channel: &[u8]) -> Option<Events> {
    (!channel.is_empty()).then(|| Events {
        channel: channel.to_vec(),
        text: |event, id| statistics::channel_event(event.name(), id),
    })
}

fn secs(given: time_t, default: u32) -> u32 {
    if given == unset::SECONDS {
        default
    } else {
        u32::try_from(given).unwrap_or(u32::MAX)
    }
}

/// The text if the directive was given, even if empty; else the default.
fn text(given: &ngx_str_t, default: &[u8]) -> Vec<u8> {
    if given.data.is_null() {
        default.to_vec()
    } else {
        given.as_bytes().to_vec()
    }
}

/// This module's configuration of the http block that is being read.
pub fn main_of<'c>(conf: Conf<'c>) -> &'c mut Main {
    // SAFETY: `create` made it; setters and merge functions have no other reference to it.
    unsafe { &mut *conf.main_conf().cast::<Main>() }
}
