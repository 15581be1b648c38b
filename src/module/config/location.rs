//! Directives of http, server, location and `if`: as written, inherited, checked and prepared.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use std::rc::Rc;

use ngx::ffi::*;
use ngx::{ngx_conf_log_error, ngx_string};
use push_stream_core::store::{OutOfOrder, Terms};
use push_stream_core::wire::coding::{Coding, stream as coding};
use push_stream_core::wire::eventsource;
use push_stream_core::wire::statistics;
use push_stream_core::wire::template::{Fields, Template};
use push_stream_core::wire::websocket::{self, Opcode};

use super::ids::{ORDERED, Retry, STORE};
use super::main::{Main, Settings, main_of};
use super::padding::{self, Padding};
use super::place::Place;
use super::token::{self, Gate};
use super::values::{REPORTED, given, given_ms, unset, warn, word};
use crate::delivery::{Audience, Compression, Format, Incoming, Lingering, SlowReader, Transport};
use crate::ffi::directive::Conf;

/// `push_stream_slow_reader`.
pub static mut SLOW_READER: [ngx_conf_enum_t; 4] = [
    word(ngx_string!("close"), 0),
    word(ngx_string!("skip"), 1),
    word(ngx_string!("latest"), 2),
    word(ngx_str_t::empty(), 0),
];

/// `push_stream_statistics_format`.
pub static mut STATISTICS_FORMAT: [ngx_conf_enum_t; 6] = [
    word(ngx_string!("json"), 0),
    word(ngx_string!("plain"), 1),
    word(ngx_string!("xml"), 2),
    word(ngx_string!("yaml"), 3),
    word(ngx_string!("prometheus"), PROMETHEUS),
    word(ngx_str_t::empty(), 0),
];

const PROMETHEUS: ngx_uint_t = 4;

/// Default of `push_stream_subscriber_queue`: 1 MiB.
const SUBSCRIBER_QUEUE: usize = 1 << 20;

/// Default of `push_stream_batch_max_lines`.
const BATCH_MAX_LINES: ngx_int_t = 1000;

/// Default of `push_stream_batch_max_line`: 64 KiB.
const BATCH_MAX_LINE: usize = 64 * 1024;

/// Default of `push_stream_websocket_max_message_size`: more than clients of the C module are known to send.
const WEBSOCKET_MAX_MESSAGE: usize = 5 * 1024 * 1024;

/// `push_stream_compress_context`.
pub static mut COMPRESS_CONTEXT: [ngx_conf_enum_t; 3] = [
    word(ngx_string!("message"), 0),
    word(ngx_string!("group"), GROUP),
    word(ngx_str_t::empty(), 0),
];

const GROUP: ngx_uint_t = 1;

/// Default of `push_stream_compress_min_length`.
const COMPRESS_MIN_LENGTH: usize = 64;

/// Default of `push_stream_compress_groups`.
const COMPRESS_GROUPS: ngx_int_t = 64;

/// The role of a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Statistics,
    Console,
    Publisher(PublisherMode),
    Subscriber(SubscriberMode),
    SessionControl,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublisherMode {
    Normal,
    Admin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriberMode {
    Streaming,
    EventSource,
    Polling,
    LongPolling,
    WebSocket,
}

/// What a console shows beside its own nginx: a name, and where it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    pub name: ngx_str_t,
    /// The path of a location of this server.
    pub uri: ngx_str_t,
}

/// `push_stream_batch_max_lines` and `push_stream_batch_max_line`.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub lines: usize,
    /// Bytes of a line, without the line end.
    pub line_bytes: usize,
}

/// The format of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatisticsFormat {
    /// Negotiated by the client's Accept.
    Negotiated,
    /// This format, regardless of Accept.
    Fixed(statistics::Format),
    /// The figures of the zone for monitoring systems.
    Metrics,
}

/// One level of configuration, as written and, after merging, as inherited.
pub struct Location {
    /// Where its block begins in the configuration.
    place: Option<Place>,
    pub role: Option<Role>,
    pub channels_path: *mut ngx_http_complex_value_t,
    pub(super) store_messages: ngx_flag_t,
    pub(super) info_on_publish: ngx_flag_t,
    pub(super) admin_api: ngx_flag_t,
    /// `push_stream_console_worker` and `push_stream_console_node`.
    pub(super) console_workers: Vec<Watched>,
    pub(super) console_nodes: Vec<Watched>,
    pub(super) batch_publish: ngx_flag_t,
    pub(super) batch_max_lines: ngx_int_t,
    pub(super) batch_max_line: usize,
    pub(super) authorized_channels_only: ngx_flag_t,
    pub(super) header_template: ngx_str_t,
    pub(super) message_template: ngx_str_t,
    pub(super) footer_template: ngx_str_t,
    pub(super) wildcard_max: ngx_int_t,
    pub(super) ping_interval_ms: ngx_msec_t,
    pub(super) subscriber_ttl_ms: ngx_msec_t,
    pub(super) longpolling_ttl_ms: ngx_msec_t,
    pub(super) websocket_allow_publish: ngx_flag_t,
    pub(super) websocket_strict: ngx_flag_t,
    pub(super) websocket_binary: ngx_flag_t,
    pub(super) websocket_deflate: ngx_flag_t,
    pub(super) websocket_max_message: usize,
    pub last_time: *mut ngx_http_complex_value_t,
    pub last_tag: *mut ngx_http_complex_value_t,
    pub last_event_id: *mut ngx_http_complex_value_t,
    pub user_agent: *mut ngx_http_complex_value_t,
    pub(super) padding_text: ngx_str_t,
    pub allowed_origins: *mut ngx_http_complex_value_t,
    pub(super) allow_events_channel: ngx_flag_t,
    pub(super) statistics_format: ngx_uint_t,
    pub(super) statistics_channels: ngx_int_t,
    pub(super) auto_event_id: ngx_flag_t,
    pub(super) out_of_order: ngx_uint_t,
    pub(super) idempotent_publish: ngx_flag_t,
    pub(super) resume: ngx_uint_t,
    pub(super) gap_notice: ngx_flag_t,
    pub(super) gap_text: ngx_str_t,
    pub(super) eventsource_retry: Option<Retry>,
    pub(super) slow_reader: ngx_uint_t,
    pub(super) subscriber_queue: usize,
    pub(super) dead_peer_timeout_ms: ngx_msec_t,
    pub(super) control: ngx_flag_t,
    pub(super) detach: ngx_flag_t,
    pub(super) detach_tls: ngx_flag_t,
    /// Empty = off.
    pub(super) compress: Option<Vec<Coding>>,
    pub(super) compress_context: ngx_uint_t,
    pub(super) compress_level: ngx_int_t,
    pub(super) compress_min_length: usize,
    pub(super) compress_groups: ngx_int_t,
    /// NULL = off.
    pub(super) log_disconnect: *mut ngx_open_file_t,
    pub(super) cors_credentials: ngx_flag_t,
    pub(super) refuse_softly: ngx_flag_t,
    pub(super) token_mode: ngx_uint_t,
    pub(super) token_claims: ngx_uint_t,
    pub(super) token: token::Written,
    /// Prepared for publisher and subscriber locations that ask for access tokens.
    pub gate: Option<Gate>,
    /// Prepared for subscriber locations.
    pub audience: Option<Rc<Audience>>,
}

impl Location {
    /// Does any directive of the location depend on the order of ids?
    fn checks_ids(&self) -> bool {
        self.auto_event_id == 1
            || self.idempotent_publish == 1
            || self.out_of_order != unset::ENUM
            || self.resumes_in_order()
            || self.gap_notice == 1
            || self.eventsource_retry.is_some()
    }

    /// Does the location use any directive about ids, batches or gaps? Then the ids and types that publishers send are
    /// checked, and answers carry the newest id.
    pub fn tells_ids(&self) -> bool {
        self.checks_ids() || self.batch_publish == 1 || self.admin_api == 1
    }

    /// `push_stream_auto_event_id`.
    pub fn gives_ids(&self) -> bool {
        self.auto_event_id == 1
    }

    /// `push_stream_resume ordered`.
    pub fn resumes_in_order(&self) -> bool {
        self.resume == ORDERED
    }

    /// `push_stream_gap_notice`.
    pub fn tells_gaps(&self) -> bool {
        self.gap_notice == 1
    }

    pub fn retry(&self) -> Option<Retry> {
        self.eventsource_retry
    }

    /// The terms on which messages are published here.
    pub fn terms(&self) -> Terms {
        // Without any such directive, publishers may send any ids in any order.
        let refuses = self.checks_ids() && self.out_of_order != STORE;
        Terms {
            store: self.store_messages(),
            auto_id: self.gives_ids(),
            idempotent: self.idempotent_publish == 1,
            out_of_order: if refuses { OutOfOrder::Refuse } else { OutOfOrder::Store },
        }
    }

    pub fn store_messages(&self) -> bool {
        self.store_messages == 1
    }

    pub fn info_on_publish(&self) -> bool {
        self.info_on_publish == 1
    }

    /// `push_stream_cors_credentials`.
    pub fn cors_credentials(&self) -> bool {
        self.cors_credentials == 1
    }

    /// `push_stream_refuse_softly`.
    pub fn refuses_softly(&self) -> bool {
        self.refuse_softly == 1
    }

    /// Is this the one origin that stands for all, and with which browsers send no credentials?
    fn allows_any_origin(&self) -> bool {
        // SAFETY: NULL, or compiled into the configuration.
        let origins = unsafe { self.allowed_origins.as_ref() };
        origins.is_some_and(|origins| origins.value.as_bytes() == b"*")
    }

    /// May operators list channels and messages, and delete in bulk?
    pub fn admin_api(&self) -> bool {
        self.admin_api == 1
    }

    /// The workers whose pipelines a console shows.
    pub fn console_workers(&self) -> &[Watched] {
        &self.console_workers
    }

    /// The other nodes that a console shows.
    pub fn console_nodes(&self) -> &[Watched] {
        &self.console_nodes
    }

    /// Limits of a batch; None if a body is always one message.
    pub fn batch(&self) -> Option<BatchLimits> {
        (self.batch_publish == 1).then_some(BatchLimits {
            lines: usize::try_from(self.batch_max_lines).unwrap_or(usize::MAX),
            line_bytes: self.batch_max_line,
        })
    }

    pub fn authorized_channels_only(&self) -> bool {
        self.authorized_channels_only == 1
    }

    pub fn may_follow_events(&self) -> bool {
        self.allow_events_channel == 1
    }

    /// Maximum of wildcard channels in one subscription; None = unlimited.
    pub fn wildcard_max(&self) -> Option<u32> {
        given(self.wildcard_max)
    }

    fn inherit(&mut self, outer: &Location, main: &Main) {
        self.role = self.role.or(outer.role);
        for (inner, outer) in [
            (&mut self.channels_path, outer.channels_path),
            (&mut self.last_time, outer.last_time),
            (&mut self.last_tag, outer.last_tag),
            (&mut self.last_event_id, outer.last_event_id),
            (&mut self.user_agent, outer.user_agent),
            (&mut self.allowed_origins, outer.allowed_origins),
        ] {
            if inner.is_null() {
                *inner = outer;
            }
        }
        for (inner, outer) in [
            (&mut self.header_template, outer.header_template),
            (&mut self.footer_template, outer.footer_template),
            (&mut self.padding_text, outer.padding_text),
            (&mut self.message_template, outer.message_template),
            (&mut self.gap_text, outer.gap_text),
        ] {
            if inner.data.is_null() {
                *inner = outer;
            }
        }
        if self.message_template.data.is_null() {
            self.message_template = ngx_string!("~text~");
        }
        for (inner, outer, default) in [
            (&mut self.store_messages, outer.store_messages, 0),
            (&mut self.info_on_publish, outer.info_on_publish, 1),
            (&mut self.admin_api, outer.admin_api, 0),
            (&mut self.cors_credentials, outer.cors_credentials, 0),
            (&mut self.refuse_softly, outer.refuse_softly, 0),
            (&mut self.batch_publish, outer.batch_publish, 0),
            (&mut self.statistics_channels, outer.statistics_channels, 0),
            (&mut self.batch_max_lines, outer.batch_max_lines, BATCH_MAX_LINES),
            (&mut self.authorized_channels_only, outer.authorized_channels_only, 0),
            (&mut self.websocket_allow_publish, outer.websocket_allow_publish, 0),
            (&mut self.websocket_strict, outer.websocket_strict, 0),
            (&mut self.websocket_binary, outer.websocket_binary, 0),
            (&mut self.websocket_deflate, outer.websocket_deflate, 0),
            (&mut self.auto_event_id, outer.auto_event_id, 0),
            (&mut self.idempotent_publish, outer.idempotent_publish, 0),
            (&mut self.gap_notice, outer.gap_notice, 0),
            (&mut self.allow_events_channel, outer.allow_events_channel, 0),
            (&mut self.control, outer.control, 0),
            (&mut self.detach, outer.detach, 1),
            (&mut self.detach_tls, outer.detach_tls, 0),
            (&mut self.compress_level, outer.compress_level, unset::NUMBER),
            (&mut self.compress_groups, outer.compress_groups, COMPRESS_GROUPS),
            (&mut self.wildcard_max, outer.wildcard_max, main.max_wildcard_channels),
        ] {
            settle(inner, outer, unset::FLAG, default);
        }
        settle(
            &mut self.log_disconnect,
            outer.log_disconnect,
            unset::FILE,
            ptr::null_mut(),
        );
        token::settle(&mut self.token_mode, outer.token_mode);
        token::settle(&mut self.token_claims, outer.token_claims);
        self.token.inherit(&outer.token);
        if self.compress.is_none() {
            self.compress.clone_from(&outer.compress);
        }
        settle(&mut self.compress_context, outer.compress_context, unset::ENUM, GROUP);
        settle(
            &mut self.compress_min_length,
            outer.compress_min_length,
            unset::SIZE,
            COMPRESS_MIN_LENGTH,
        );
        settle(&mut self.resume, outer.resume, unset::ENUM, 0);
        settle(&mut self.out_of_order, outer.out_of_order, unset::ENUM, unset::ENUM);
        self.eventsource_retry = self.eventsource_retry.or(outer.eventsource_retry);
        settle(&mut self.slow_reader, outer.slow_reader, unset::ENUM, 0);
        settle(
            &mut self.statistics_format,
            outer.statistics_format,
            unset::ENUM,
            unset::ENUM,
        );
        settle(
            &mut self.subscriber_queue,
            outer.subscriber_queue,
            unset::SIZE,
            SUBSCRIBER_QUEUE,
        );
        settle(
            &mut self.batch_max_line,
            outer.batch_max_line,
            unset::SIZE,
            BATCH_MAX_LINE,
        );
        settle(
            &mut self.websocket_max_message,
            outer.websocket_max_message,
            unset::SIZE,
            WEBSOCKET_MAX_MESSAGE,
        );
        settle(
            &mut self.ping_interval_ms,
            outer.ping_interval_ms,
            unset::MSEC,
            unset::MSEC,
        );
        settle(
            &mut self.subscriber_ttl_ms,
            outer.subscriber_ttl_ms,
            unset::MSEC,
            unset::MSEC,
        );
        settle(
            &mut self.dead_peer_timeout_ms,
            outer.dead_peer_timeout_ms,
            unset::MSEC,
            0,
        );
        // As the C module does, at every level: a server inherits the result of merging the http block's two values.
        settle(
            &mut self.longpolling_ttl_ms,
            outer.longpolling_ttl_ms,
            unset::MSEC,
            self.subscriber_ttl_ms,
        );
    }

    /// Number of the busiest channels that get figures of their own.
    pub fn statistics_channels(&self) -> usize {
        usize::try_from(self.statistics_channels).unwrap_or(0)
    }

    pub fn statistics_format(&self) -> StatisticsFormat {
        match self.statistics_format {
            0 => StatisticsFormat::Fixed(statistics::Format::Json),
            1 => StatisticsFormat::Fixed(statistics::Format::Plain),
            2 => StatisticsFormat::Fixed(statistics::Format::Xml),
            3 => StatisticsFormat::Fixed(statistics::Format::Yaml),
            PROMETHEUS => StatisticsFormat::Metrics,
            _ => StatisticsFormat::Negotiated,
        }
    }

    /// Is the channels path optional in this location?
    fn needs_no_path(&self, role: Role) -> bool {
        match role {
            Role::Statistics => self.statistics_format() == StatisticsFormat::Metrics,
            Role::Console => !self.admin_api(),
            Role::SessionControl => true,
            _ => false,
        }
    }

    /// Checks directives that need a role in the same location, at the level where they are written.
    fn check_own(&self) -> Result<(), &'static CStr> {
        let operators = [Role::Publisher(PublisherMode::Admin), Role::Console].map(Some);
        if self.admin_api == 1 && !operators.contains(&self.role) {
            return Err(
                c"push_stream_admin_api needs push_stream_publisher admin or push_stream_console in the same location.",
            );
        }
        if self.role != Some(Role::Console) {
            if !self.console_workers.is_empty() {
                return Err(c"push_stream_console_worker needs push_stream_console in the same location.");
            }
            if !self.console_nodes.is_empty() {
                return Err(c"push_stream_console_node needs push_stream_console in the same location.");
            }
        }
        if self.batch_publish == 1 && !matches!(self.role, Some(Role::Publisher(_))) {
            return Err(c"push_stream_batch_publish needs push_stream_publisher in the same location.");
        }
        if self.control == 1
            && let Some(role) = self.role
            && !matches!(
                role,
                Role::Subscriber(SubscriberMode::EventSource | SubscriberMode::WebSocket)
            )
        {
            return Err(
                c"push_stream_control needs push_stream_subscriber eventsource or websocket in the same location.",
            );
        }
        if self.statistics_format != unset::ENUM && self.role != Some(Role::Statistics) {
            return Err(c"push_stream_statistics_format needs push_stream_channels_statistics in the same location.");
        }
        Ok(())
    }

    /// Warns of configured texts that clients will misread.
    fn warn(&self, conf: Conf<'_>, mode: SubscriberMode, main: &Main) {
        let message = self.message_template.as_bytes();
        let (header, footer) = (self.header_template.as_bytes(), self.footer_template.as_bytes());
        match mode {
            SubscriberMode::EventSource => {
                for oddity in eventsource::oddities(message, header, footer) {
                    warn(conf, format_args!("{oddity}{}", location_name(conf)));
                }
            }
            SubscriberMode::WebSocket => {
                let texts = [
                    ("push_stream_message_template", message),
                    ("push_stream_header_template", header),
                    ("push_stream_footer_template", footer),
                    ("push_stream_gap_message_text", self.gap_text.as_bytes()),
                    (
                        "push_stream_channel_deleted_message_text",
                        main.channel_deleted_text.as_bytes(),
                    ),
                ];
                for (name, _) in texts.into_iter().filter(|(_, text)| str::from_utf8(text).is_err()) {
                    let location = location_name(conf);
                    warn(
                        conf,
                        format_args!("{name} is not UTF-8, so clients will close the connection{location}"),
                    );
                }
            }
            _ => {}
        }
    }

    /// Compression of the location's messages, if it is on and possible.
    fn compression(&self, mode: SubscriberMode) -> Option<Compression> {
        let on = match mode {
            SubscriberMode::WebSocket => self.websocket_deflate == 1,
            _ => self.compress.as_ref().is_some_and(|codings| !codings.is_empty()),
        };
        on.then(|| Compression {
            terms: coding::Terms {
                level: given(self.compress_level),
                min_length: self.compress_min_length,
                grouped: self.compress_context == GROUP,
            },
            groups: given(self.compress_groups).map_or(0, |groups| groups as usize),
        })
    }

    /// Does the level hold for gzip or permessage-deflate here?
    fn uses_deflate(&self, role: Role) -> bool {
        match role {
            Role::Subscriber(SubscriberMode::WebSocket) => self.websocket_deflate == 1,
            Role::Subscriber(_) => self
                .compress
                .as_ref()
                .is_some_and(|codings| codings.contains(&Coding::Gzip)),
            _ => false,
        }
    }

    fn gap_text(&self) -> Vec<u8> {
        if self.gap_text.data.is_null() {
            return b"Messages lost".to_vec();
        }
        self.gap_text.as_bytes().to_vec()
    }

    /// The checks for locations with a role.
    fn check(&self, role: Role, main: &Main) -> Result<(), &'static CStr> {
        let eventsource = role == Role::Subscriber(SubscriberMode::EventSource);
        let prefix_missing = main.wildcard_prefix.is_empty();
        let wildcard_max = self.wildcard_max();
        let wildcard_limit = given(main.max_wildcard_channels);
        let refusals = [
            (
                self.channels_path.is_null() && !self.needs_no_path(role),
                c"push_stream_channels_path must be set.",
            ),
            (self.ping_interval_ms == 0, c"push_stream_ping_message_interval cannot be zero."),
            (self.subscriber_ttl_ms == 0, c"push_stream_subscriber_connection_ttl cannot be zero."),
            (self.longpolling_ttl_ms == 0, c"push_stream_longpolling_connection_ttl cannot be zero."),
            (
                self.message_template.is_empty() && !eventsource,
                c"push_stream_message_template cannot be blank.",
            ),
            (wildcard_max == Some(0), c"push_stream_wildcard_channel_max_qtd cannot be zero."),
            (
                wildcard_max.is_some() && prefix_missing,
                c"cannot set wildcard channel max qtd if push_stream_wildcard_channel_prefix is not set or blank.",
            ),
            (
                wildcard_limit.zip(wildcard_max).is_some_and(|(limit, max)| limit < max),
                c"max number of wildcard channels cannot be smaller than value in push_stream_wildcard_channel_max_qtd.",
            ),
            (
                self.cors_credentials() && self.allows_any_origin(),
                c"push_stream_cors_credentials needs named origins in push_stream_allowed_origins.",
            ),
            (self.batch_max_lines == 0, c"push_stream_batch_max_lines cannot be zero."),
            (self.batch_max_line == 0, c"push_stream_batch_max_line cannot be zero."),
            (self.subscriber_queue == 0, c"push_stream_subscriber_queue cannot be zero."),
            (
                self.compress_level != unset::NUMBER && !(1..=19).contains(&self.compress_level),
                c"push_stream_compress_level must be from 1 to 9, or to 19 for zstd alone.",
            ),
            (
                self.compress_level > 9 && self.uses_deflate(role),
                c"push_stream_compress_level must be from 1 to 9 for gzip and permessage-deflate.",
            ),
            (
                self.tells_gaps() && !self.resumes_in_order() && matches!(role, Role::Subscriber(_)),
                c"push_stream_gap_notice needs push_stream_resume ordered.",
            ),
            (
                self.websocket_max_message == 0,
                c"push_stream_websocket_max_message_size cannot be zero.",
            ),
        ];
        refusals
            .into_iter()
            .find_map(|(wrong, reason)| wrong.then_some(Err(reason)))
            .unwrap_or(Ok(()))
    }

    fn prepare(
        &self,
        mode: SubscriberMode,
        main: &mut Main,
        core: &ngx_http_core_loc_conf_t,
        padding: Vec<Padding>,
        location: Box<[u8]>,
    ) -> Audience {
        let ping_text = main
            .settings
            .as_ref()
            .map_or(&b" "[..], |settings: &Rc<Settings>| &settings.ping_text);
        let configured = self.message_template.as_bytes();
        let (header, footer) = (self.header_template.as_bytes(), self.footer_template.as_bytes());
        let (format, header, footer) = match mode {
            SubscriberMode::EventSource => (
                Format {
                    transport: Transport::EventSource,
                    template: eventsource::message_template(configured),
                    ping: eventsource::PING.to_vec(),
                    ordered: false,
                    gap_text: None,
                    compression: None,
                },
                eventsource::header(header),
                eventsource::footer(footer),
            ),
            SubscriberMode::WebSocket => (
                Format {
                    transport: Transport::WebSocket {
                        binary: self.websocket_binary == 1,
                    },
                    template: Template::parse(configured),
                    ping: frame(Opcode::Ping, b""),
                    ordered: false,
                    gap_text: None,
                    compression: None,
                },
                text_frame(header),
                text_frame(footer),
            ),
            _ => (plain_format(configured, ping_text), header.to_vec(), footer.to_vec()),
        };
        let format = Format {
            ordered: self.resumes_in_order(),
            gap_text: self.tells_gaps().then(|| self.gap_text()),
            compression: self.compression(mode),
            ..format
        };
        Audience {
            location,
            codings: format
                .compression
                .map_or_else(Vec::new, |_| self.compress.clone().unwrap_or_default()),
            format: main.intern(format),
            header,
            footer,
            ping_interval_ms: given_ms(self.ping_interval_ms),
            ttl_ms: given_ms(self.subscriber_ttl_ms),
            longpolling_ttl_ms: given_ms(self.longpolling_ttl_ms),
            dead_peer_timeout_ms: (self.dead_peer_timeout_ms > 0)
                .then(|| u32::try_from(self.dead_peer_timeout_ms).unwrap_or(u32::MAX)),
            slow_reader: match self.slow_reader {
                1 => SlowReader::Skip,
                2 => SlowReader::Latest,
                _ => SlowReader::Close,
            },
            queue_bytes: self.subscriber_queue,
            padding,
            incoming: Incoming {
                rules: websocket::Rules {
                    max_message: self.websocket_max_message as u64,
                    masked_only: self.websocket_strict == 1,
                    binary: self.websocket_binary == 1,
                    keep: self.websocket_allow_publish == 1,
                    // Only if that is agreed on.
                    deflate: false,
                },
                publish: self.websocket_allow_publish == 1,
                terms: Terms {
                    auto_id: self.auto_event_id == 1,
                    ..Terms::plain(self.store_messages())
                },
            },
            padding_max: main.padding_max.clone(),
            control: self.control == 1,
            policy: self.gate.as_ref().map(|gate| gate.policy),
            authorized_channels_only: self.authorized_channels_only(),
            may_follow_events: self.may_follow_events(),
            wildcard_max: self.wildcard_max(),
            guarded: self.gate.as_ref().is_some_and(|gate| gate.required),
            detach: self.detach == 1,
            detach_tls: self.detach == 1 && self.detach_tls == 1,
            log_disconnect: self.log_disconnect,
            send_timeout_ms: core.send_timeout as u64,
            reset_timedout: core.reset_timedout_connection == 1,
            lingering: Lingering::of(core),
            lingering_timeout_ms: core.lingering_timeout as u64,
            lingering_time_ms: core.lingering_time as u64,
            error_log: core.error_log,
        }
    }
}

/// A template as a text frame; no bytes if it is empty.
fn text_frame(template: &[u8]) -> Vec<u8> {
    if template.is_empty() {
        Vec::new()
    } else {
        frame(Opcode::Text, template)
    }
}

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    websocket::push_frame(opcode, payload, &mut frame);
    frame
}

fn plain_format(configured: &[u8], ping_text: &[u8]) -> Format {
    let template = Template::parse(configured);
    let mut ping = Vec::new();
    let fields = Fields {
        id: -1,
        channel: b"",
        text: ping_text,
        time: 0,
        tag: 0,
        event_id: None,
        event_type: None,
    };
    template.render(&fields, &mut ping);
    Format {
        transport: Transport::Plain,
        template,
        ping,
        ordered: false,
        gap_text: None,
        compression: None,
    }
}

/// The inner value, else the outer one, else the default.
fn settle<T: PartialEq + Copy>(inner: &mut T, outer: T, unset: T, default: T) {
    if *inner == unset {
        *inner = if outer == unset { default } else { outer };
    }
}

pub unsafe extern "C" fn create(cf: *mut ngx_conf_t) -> *mut c_void {
    // SAFETY: nginx passes it.
    let conf = unsafe { Conf::new(cf) };
    let location = Location {
        place: Place::of(conf),
        role: None,
        channels_path: ptr::null_mut(),
        store_messages: unset::FLAG,
        info_on_publish: unset::FLAG,
        admin_api: unset::FLAG,
        batch_publish: unset::FLAG,
        batch_max_lines: unset::NUMBER,
        batch_max_line: unset::SIZE,
        authorized_channels_only: unset::FLAG,
        header_template: ngx_str_t::empty(),
        message_template: ngx_str_t::empty(),
        footer_template: ngx_str_t::empty(),
        wildcard_max: unset::NUMBER,
        ping_interval_ms: unset::MSEC,
        subscriber_ttl_ms: unset::MSEC,
        longpolling_ttl_ms: unset::MSEC,
        websocket_allow_publish: unset::FLAG,
        websocket_strict: unset::FLAG,
        websocket_binary: unset::FLAG,
        websocket_deflate: unset::FLAG,
        websocket_max_message: unset::SIZE,
        last_time: ptr::null_mut(),
        last_tag: ptr::null_mut(),
        last_event_id: ptr::null_mut(),
        user_agent: ptr::null_mut(),
        padding_text: ngx_str_t::empty(),
        allowed_origins: ptr::null_mut(),
        allow_events_channel: unset::FLAG,
        statistics_format: unset::ENUM,
        statistics_channels: unset::NUMBER,
        auto_event_id: unset::FLAG,
        out_of_order: unset::ENUM,
        idempotent_publish: unset::FLAG,
        resume: unset::ENUM,
        gap_notice: unset::FLAG,
        gap_text: ngx_str_t::empty(),
        eventsource_retry: None,
        slow_reader: unset::ENUM,
        subscriber_queue: unset::SIZE,
        dead_peer_timeout_ms: unset::MSEC,
        control: unset::FLAG,
        detach: unset::FLAG,
        detach_tls: unset::FLAG,
        compress: None,
        compress_context: unset::ENUM,
        compress_level: unset::NUMBER,
        compress_min_length: unset::SIZE,
        compress_groups: unset::NUMBER,
        log_disconnect: unset::FILE,
        cors_credentials: unset::FLAG,
        refuse_softly: unset::FLAG,
        token_mode: unset::ENUM,
        token_claims: unset::ENUM,
        console_workers: Vec::new(),
        console_nodes: Vec::new(),
        token: token::Written::default(),
        gate: None,
        audience: None,
    };
    conf.place(location)
}

pub unsafe extern "C" fn merge(cf: *mut ngx_conf_t, outer: *mut c_void, inner: *mut c_void) -> *mut c_char {
    // SAFETY: nginx passes what `create` made for the two levels; they differ.
    let (outer, inner, conf) = unsafe {
        (
            &*outer.cast::<Location>(),
            &mut *inner.cast::<Location>(),
            Conf::new(cf),
        )
    };
    Place::during(inner.place, conf, || settle_level(conf, outer, inner, main_of(conf)))
}

fn settle_level(conf: Conf<'_>, outer: &Location, inner: &mut Location, main: &mut Main) -> *mut c_char {
    if let Err(reason) = inner.check_own() {
        return refuse_here(conf, reason);
    }
    inner.inherit(outer, main);
    let Some(role) = inner.role else {
        return ptr::null_mut();
    };
    if let Err(reason) = inner.check(role, main) {
        return refuse_here(conf, reason);
    }
    if !matches!(role, Role::Statistics | Role::Console) {
        match inner.token.prepare(inner.token_mode, inner.token_claims, &main.tokens) {
            Ok(gate) => inner.gate = gate,
            Err(reason) => {
                let location = location_name(conf);
                ngx_conf_log_error!(NGX_LOG_ERR, conf.raw(), "push stream module: {reason}{location}");
                return REPORTED;
            }
        }
    }
    if matches!(role, Role::Statistics | Role::Console) {
        let wanted = given(inner.statistics_channels).unwrap_or(0);
        main.statistics_channels.set(main.statistics_channels.get().max(wanted));
    }
    if let Role::Subscriber(mode) = role {
        inner.warn(conf, mode, main);
        let padding = match padding::parse(conf, inner.padding_text.as_bytes()) {
            Ok(padding) => padding,
            Err(reported) => return reported,
        };
        let largest = padding
            .iter()
            .map(|group| group.header_min.max(group.message_min))
            .max()
            .unwrap_or(0);
        main.padding_max.set(main.padding_max.get().max(largest));
        // The core module's part of this level is merged, it comes first.
        let core = conf.core_location();
        let location = location_key(conf, core);
        let audience = inner.prepare(mode, main, core, padding, location);
        if audience.detach_tls {
            main.tls_servers.push(conf.server());
        }
        let audience = Rc::new(audience);
        main.audiences.borrow_mut().push(audience.clone());
        inner.audience = Some(audience);
    }
    ptr::null_mut()
}

/// The name of the location being merged; empty for a server.
fn location_name(conf: Conf<'_>) -> String {
    let name = conf.core_location().name;
    if name.is_empty() {
        return String::new();
    }
    format!(" in location \"{name}\"")
}

/// Logs why a location's configuration is refused.
fn refuse_here(conf: Conf<'_>, reason: &CStr) -> *mut c_char {
    let (reason, location) = (reason.to_string_lossy(), location_name(conf));
    ngx_conf_log_error!(NGX_LOG_ERR, conf.raw(), "push stream module: {reason}{location}");
    REPORTED
}

/// The server's first name, how the location is matched, and its name. `core` is the core module's part of this level.
fn location_key(conf: Conf<'_>, core: &ngx_http_core_loc_conf_t) -> Box<[u8]> {
    let server = conf.core_server();
    let matching = match (
        core.exact_match() != 0,
        core.named() != 0,
        core.noregex() != 0,
        core.noname() != 0,
    ) {
        (true, ..) => "=",
        (_, true, ..) => "@",
        (.., true, _) => "^~",
        (.., true) => "if",
        _ => "",
    };
    [server.server_name.as_bytes(), matching.as_bytes(), core.name.as_bytes()]
        .join(&b' ')
        .into()
}
