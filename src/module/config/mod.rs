//! The directives: their contexts, setters and results.
//!
//! * [`main`]: the http block's own directives and their checks by `nginx -t`.
//! * [`ids`]: directives about message ids.
//! * [`location`]: directives also allowed in servers, locations and `if` blocks: inheritance and checks.
//! * [`setters`]: what nginx calls for directives that its own setters do not fit. [`values`]: what these share.
//! * [`place`]: file and line for error messages.
//! * [`token`], [`token_setters`]: directives about access tokens.
//! * [`zone`]: the shared memory zone's life across reloads.

mod ids;
mod location;
mod main;
mod padding;
mod place;
mod setters;
mod tls;
mod token;
mod token_setters;
mod values;
mod zone;

use std::ffi::{c_char, c_void};
use std::mem::offset_of;
use std::ptr;

use ngx::ffi::*;
use ngx::ngx_string;

pub use location::{Location, PublisherMode, Role, StatisticsFormat, SubscriberMode, Watched};
pub use main::{Main, Settings};
pub use padding::Padding;
pub use token::{Carrier, Gate};
pub use zone::forget_wake_fds;

use crate::ffi::lookup;
use crate::http;

const MAIN: u32 = NGX_HTTP_MAIN_CONF;
const SRV: u32 = NGX_HTTP_SRV_CONF;
const LOC: u32 = NGX_HTTP_LOC_CONF;
const LIF: u32 = NGX_HTTP_LIF_CONF;

type Setter = unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

const fn directive(name: ngx_str_t, kind: u32, set: Setter, conf: usize, offset: usize) -> ngx_command_t {
    ngx_command_t {
        name,
        type_: kind as ngx_uint_t,
        set: Some(set),
        conf,
        offset,
        post: ptr::null_mut(),
    }
}

const fn with_post(mut command: ngx_command_t, post: *mut c_void) -> ngx_command_t {
    command.post = post;
    command
}

/// A directive of the http block: name, arguments, setter, field of [`Main`].
macro_rules! http {
    ($name:literal, $args:expr, $set:expr, $field:ident) => {
        directive(
            ngx_string!($name),
            MAIN | $args,
            $set,
            NGX_HTTP_MAIN_CONF_OFFSET,
            offset_of!(Main, $field),
        )
    };
}

/// A directive with a field of [`Location`]: name, contexts, arguments, setter, field.
macro_rules! location {
    ($name:literal, $contexts:expr, $args:expr, $set:expr, $field:ident) => {
        directive(
            ngx_string!($name),
            $contexts | $args,
            $set,
            NGX_HTTP_LOC_CONF_OFFSET,
            offset_of!(Location, $field),
        )
    };
}

const FLAG: u32 = NGX_CONF_FLAG;
const ONE: u32 = NGX_CONF_TAKE1;
const ALL_LEVELS: u32 = MAIN | SRV | LOC;
const ALL_LEVELS_AND_IF: u32 = MAIN | SRV | LOC | LIF;

/// Every directive, in the order of the documentation: roles, then the http block's, then inherited ones.
pub static mut COMMANDS: [ngx_command_t; 85] = [
    location!(
        "push_stream_channels_statistics",
        LOC,
        NGX_CONF_NOARGS,
        setters::set_statistics,
        role
    ),
    location!("push_stream_console", LOC, NGX_CONF_NOARGS, setters::set_console, role),
    location!(
        "push_stream_console_worker",
        LOC,
        NGX_CONF_TAKE2,
        setters::set_console_worker,
        console_workers
    ),
    location!(
        "push_stream_console_node",
        LOC,
        NGX_CONF_TAKE2,
        setters::set_console_node,
        console_nodes
    ),
    location!(
        "push_stream_publisher",
        LOC,
        NGX_CONF_NOARGS | ONE,
        setters::set_publisher,
        role
    ),
    location!(
        "push_stream_subscriber",
        LOC,
        NGX_CONF_NOARGS | ONE,
        setters::set_subscriber,
        role
    ),
    location!(
        "push_stream_session_control",
        LOC,
        NGX_CONF_NOARGS,
        setters::set_session_control,
        role
    ),
    with_post(
        location!(
            "push_stream_statistics_format",
            LOC,
            ONE,
            ngx_conf_set_enum_slot,
            statistics_format
        ),
        &raw mut location::STATISTICS_FORMAT as *mut c_void,
    ),
    location!(
        "push_stream_statistics_channels",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_num_slot,
        statistics_channels
    ),
    http!(
        "push_stream_shared_memory_size",
        NGX_CONF_TAKE12,
        setters::set_shared_memory_size,
        zones
    ),
    http!(
        "push_stream_channel_deleted_message_text",
        ONE,
        ngx_conf_set_str_slot,
        channel_deleted_text
    ),
    http!(
        "push_stream_channel_inactivity_time",
        ONE,
        ngx_conf_set_sec_slot,
        channel_inactivity_secs
    ),
    http!("push_stream_ping_message_text", ONE, ngx_conf_set_str_slot, ping_text),
    http!(
        "push_stream_timeout_with_body",
        FLAG,
        ngx_conf_set_flag_slot,
        timeout_with_body
    ),
    http!(
        "push_stream_message_ttl",
        ONE,
        setters::set_message_ttl,
        message_ttl_secs
    ),
    http!(
        "push_stream_max_subscribers_per_channel",
        ONE,
        setters::set_limit,
        max_subscribers_per_channel
    ),
    http!(
        "push_stream_max_subscribers_per_address",
        ONE,
        setters::set_limit,
        max_subscribers_per_address
    ),
    http!(
        "push_stream_max_messages_stored_per_channel",
        ONE,
        setters::set_limit,
        max_stored_per_channel
    ),
    http!(
        "push_stream_max_channel_id_length",
        ONE,
        setters::set_limit,
        max_channel_id_length
    ),
    http!(
        "push_stream_max_number_of_channels",
        ONE,
        setters::set_limit,
        max_channels
    ),
    http!(
        "push_stream_max_number_of_wildcard_channels",
        ONE,
        setters::set_limit,
        max_wildcard_channels
    ),
    http!(
        "push_stream_wildcard_channel_prefix",
        ONE,
        ngx_conf_set_str_slot,
        wildcard_prefix
    ),
    http!(
        "push_stream_events_channel_id",
        ONE,
        ngx_conf_set_str_slot,
        events_channel_id
    ),
    with_post(
        http!("push_stream_on_full", ONE, ngx_conf_set_enum_slot, on_full),
        &raw mut main::ON_FULL as *mut c_void,
    ),
    http!("push_stream_drain_time", ONE, ngx_conf_set_msec_slot, drain_time_ms),
    http!("push_stream_handover", FLAG, ngx_conf_set_flag_slot, handover),
    http!(
        "push_stream_idempotent_window",
        ONE,
        setters::set_limit,
        idempotent_window
    ),
    location!(
        "push_stream_channels_path",
        ALL_LEVELS_AND_IF,
        ONE,
        ngx_http_set_complex_value_slot,
        channels_path
    ),
    location!(
        "push_stream_store_messages",
        ALL_LEVELS_AND_IF,
        FLAG,
        ngx_conf_set_flag_slot,
        store_messages
    ),
    location!(
        "push_stream_channel_info_on_publish",
        ALL_LEVELS,
        FLAG,
        ngx_conf_set_flag_slot,
        info_on_publish
    ),
    location!("push_stream_admin_api", LOC, FLAG, ngx_conf_set_flag_slot, admin_api),
    location!(
        "push_stream_batch_publish",
        LOC,
        FLAG,
        ngx_conf_set_flag_slot,
        batch_publish
    ),
    location!(
        "push_stream_batch_max_lines",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_num_slot,
        batch_max_lines
    ),
    location!(
        "push_stream_batch_max_line",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_size_slot,
        batch_max_line
    ),
    location!(
        "push_stream_authorized_channels_only",
        ALL_LEVELS,
        FLAG,
        ngx_conf_set_flag_slot,
        authorized_channels_only
    ),
    location!(
        "push_stream_header_template_file",
        ALL_LEVELS,
        ONE,
        setters::set_header_template_file,
        header_template
    ),
    location!(
        "push_stream_header_template",
        ALL_LEVELS,
        ONE,
        setters::set_literal_template,
        header_template
    ),
    location!(
        "push_stream_message_template",
        ALL_LEVELS,
        ONE,
        setters::set_message_template,
        message_template
    ),
    location!(
        "push_stream_footer_template",
        ALL_LEVELS,
        ONE,
        setters::set_literal_template,
        footer_template
    ),
    location!(
        "push_stream_wildcard_channel_max_qtd",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_num_slot,
        wildcard_max
    ),
    location!(
        "push_stream_ping_message_interval",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_msec_slot,
        ping_interval_ms
    ),
    location!(
        "push_stream_subscriber_connection_ttl",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_msec_slot,
        subscriber_ttl_ms
    ),
    location!(
        "push_stream_longpolling_connection_ttl",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_msec_slot,
        longpolling_ttl_ms
    ),
    location!(
        "push_stream_websocket_allow_publish",
        ALL_LEVELS,
        FLAG,
        ngx_conf_set_flag_slot,
        websocket_allow_publish
    ),
    location!(
        "push_stream_websocket_strict",
        ALL_LEVELS,
        FLAG,
        ngx_conf_set_flag_slot,
        websocket_strict
    ),
    location!(
        "push_stream_websocket_binary",
        ALL_LEVELS,
        FLAG,
        ngx_conf_set_flag_slot,
        websocket_binary
    ),
    location!(
        "push_stream_websocket_deflate",
        ALL_LEVELS,
        FLAG,
        ngx_conf_set_flag_slot,
        websocket_deflate
    ),
    location!(
        "push_stream_websocket_max_message_size",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_size_slot,
        websocket_max_message
    ),
    location!(
        "push_stream_last_received_message_time",
        ALL_LEVELS_AND_IF,
        ONE,
        ngx_http_set_complex_value_slot,
        last_time
    ),
    location!(
        "push_stream_last_received_message_tag",
        ALL_LEVELS_AND_IF,
        ONE,
        ngx_http_set_complex_value_slot,
        last_tag
    ),
    location!(
        "push_stream_last_event_id",
        ALL_LEVELS_AND_IF,
        ONE,
        ngx_http_set_complex_value_slot,
        last_event_id
    ),
    location!(
        "push_stream_user_agent",
        ALL_LEVELS,
        ONE,
        ngx_http_set_complex_value_slot,
        user_agent
    ),
    location!(
        "push_stream_padding_by_user_agent",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_str_slot,
        padding_text
    ),
    location!(
        "push_stream_allowed_origins",
        ALL_LEVELS,
        ONE,
        ngx_http_set_complex_value_slot,
        allowed_origins
    ),
    location!(
        "push_stream_allow_connections_to_events_channel",
        ALL_LEVELS_AND_IF,
        FLAG,
        ngx_conf_set_flag_slot,
        allow_events_channel
    ),
    location!(
        "push_stream_auto_event_id",
        ALL_LEVELS_AND_IF,
        FLAG,
        setters::set_id_flag,
        auto_event_id
    ),
    with_post(
        location!(
            "push_stream_out_of_order",
            ALL_LEVELS_AND_IF,
            ONE,
            setters::set_id_choice,
            out_of_order
        ),
        &raw mut ids::OUT_OF_ORDER as *mut c_void,
    ),
    location!(
        "push_stream_idempotent_publish",
        ALL_LEVELS_AND_IF,
        FLAG,
        setters::set_id_flag,
        idempotent_publish
    ),
    with_post(
        location!(
            "push_stream_resume",
            ALL_LEVELS_AND_IF,
            ONE,
            setters::set_id_choice,
            resume
        ),
        &raw mut ids::RESUME as *mut c_void,
    ),
    location!(
        "push_stream_gap_notice",
        ALL_LEVELS_AND_IF,
        FLAG,
        setters::set_id_flag,
        gap_notice
    ),
    location!(
        "push_stream_gap_message_text",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_str_slot,
        gap_text
    ),
    location!(
        "push_stream_eventsource_retry",
        ALL_LEVELS,
        NGX_CONF_TAKE12,
        setters::set_retry,
        eventsource_retry
    ),
    with_post(
        location!(
            "push_stream_slow_reader",
            ALL_LEVELS_AND_IF,
            ONE,
            ngx_conf_set_enum_slot,
            slow_reader
        ),
        &raw mut location::SLOW_READER as *mut c_void,
    ),
    location!(
        "push_stream_subscriber_queue",
        ALL_LEVELS_AND_IF,
        ONE,
        ngx_conf_set_size_slot,
        subscriber_queue
    ),
    location!(
        "push_stream_dead_peer_timeout",
        ALL_LEVELS,
        ONE,
        ngx_conf_set_msec_slot,
        dead_peer_timeout_ms
    ),
    location!("push_stream_control", ALL_LEVELS, FLAG, ngx_conf_set_flag_slot, control),
    location!("push_stream_detach", ALL_LEVELS, FLAG, ngx_conf_set_flag_slot, detach),
    location!(
        "push_stream_detach_tls",
        ALL_LEVELS,
        FLAG,
        setters::set_detach_tls,
        detach_tls
    ),
    location!(
        "push_stream_compress",
        ALL_LEVELS_AND_IF,
        NGX_CONF_1MORE,
        setters::set_compress,
        compress
    ),
    with_post(
        location!(
            "push_stream_compress_context",
            ALL_LEVELS_AND_IF,
            ONE,
            ngx_conf_set_enum_slot,
            compress_context
        ),
        &raw mut location::COMPRESS_CONTEXT as *mut c_void,
    ),
    location!(
        "push_stream_compress_level",
        ALL_LEVELS_AND_IF,
        ONE,
        ngx_conf_set_num_slot,
        compress_level
    ),
    location!(
        "push_stream_compress_min_length",
        ALL_LEVELS_AND_IF,
        ONE,
        ngx_conf_set_size_slot,
        compress_min_length
    ),
    location!(
        "push_stream_compress_groups",
        ALL_LEVELS_AND_IF,
        ONE,
        ngx_conf_set_num_slot,
        compress_groups
    ),
    location!(
        "push_stream_log_disconnect",
        ALL_LEVELS,
        ONE,
        setters::set_log_disconnect,
        log_disconnect
    ),
    location!(
        "push_stream_cors_credentials",
        ALL_LEVELS,
        FLAG,
        ngx_conf_set_flag_slot,
        cors_credentials
    ),
    location!(
        "push_stream_refuse_softly",
        ALL_LEVELS,
        FLAG,
        ngx_conf_set_flag_slot,
        refuse_softly
    ),
    with_post(
        location!("push_stream_token", ALL_LEVELS, ONE, ngx_conf_set_enum_slot, token_mode),
        &raw mut token::MODE as *mut c_void,
    ),
    location!(
        "push_stream_token_from",
        ALL_LEVELS,
        NGX_CONF_1MORE,
        setters::set_token_from,
        token
    ),
    location!(
        "push_stream_token_keys",
        ALL_LEVELS,
        NGX_CONF_TAKE123,
        setters::set_token_keys,
        token
    ),
    location!(
        "push_stream_token_audience",
        ALL_LEVELS,
        NGX_CONF_1MORE,
        setters::set_token_audience,
        token
    ),
    location!(
        "push_stream_token_leeway",
        ALL_LEVELS,
        ONE,
        setters::set_token_leeway,
        token
    ),
    with_post(
        location!(
            "push_stream_token_claims",
            ALL_LEVELS,
            ONE,
            ngx_conf_set_enum_slot,
            token_claims
        ),
        &raw mut token::CLAIMS as *mut c_void,
    ),
    location!(
        "push_stream_token_revoked",
        ALL_LEVELS,
        ONE,
        setters::set_token_revoked,
        token
    ),
    location!(
        "push_stream_token_ticket",
        ALL_LEVELS,
        ONE,
        setters::set_token_ticket,
        token
    ),
    ngx_command_t::empty(),
];

/// Callbacks that nginx calls while it reads the http block.
pub static HTTP_MODULE: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(http::token::add_variables),
    postconfiguration: Some(tls::prepare),
    create_main_conf: Some(main::create),
    init_main_conf: Some(main::init),
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: Some(location::create),
    merge_loc_conf: Some(location::merge),
};

/// This module's configuration of a cycle's http block, if it has one.
///
/// # Safety
/// `cycle` is a cycle whose configuration was read; the reference must not outlive it.
pub unsafe fn of_cycle<'a>(cycle: *mut ngx_cycle_t) -> Option<&'a mut Main> {
    // SAFETY: conf_ctx has one entry per module; the http module's is NULL without an http block, otherwise its
    // main_conf array has one entry per http module, and ours was made by `main::create`.
    unsafe {
        let context = (*cycle).conf_ctx.add(ngx_http_module.index).read();
        let context = context.cast::<ngx_http_conf_ctx_t>().as_ref()?;
        context
            .main_conf
            .add(lookup::own_index())
            .read()
            .cast::<Main>()
            .as_mut()
    }
}
