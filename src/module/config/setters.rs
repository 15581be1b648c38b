//! Setters: what nginx calls for each directive that its own setters do not fit.

use std::ffi::{OsStr, c_char, c_void};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use ngx::ffi::*;
use ngx::ngx_conf_log_error;
use push_stream_core::wire::coding::Coding;
use push_stream_core::wire::template;

use super::ids::Retry;
use super::location::{Location, PublisherMode, Role, SubscriberMode, Watched};
use super::main::{Main, main_of};
use super::place::Place;
use super::token_setters;
use super::values::{REPORTED, refuse, unset, verdict, warn};
use super::zone;
use crate::ffi::directive::{Conf, Directive, parse_time};
use crate::ffi::openssl;
use crate::http;

macro_rules! setters {
    ($($name:ident($level:ty) = $set:path;)*) => {$(
        pub unsafe extern "C" fn $name(
            cf: *mut ngx_conf_t,
            command: *mut ngx_command_t,
            conf: *mut c_void,
        ) -> *mut c_char {
            // SAFETY: nginx passes the directive and what this module has made for its level.
            $set(unsafe { Directive::<$level>::new(cf, command, conf) })
        }
    )*};
}

setters! {
    set_statistics(Location) = statistics;
    set_session_control(Location) = session_control;
    set_console(Location) = console;
    set_console_worker(Location) = console_worker;
    set_console_node(Location) = console_node;
    set_publisher(Location) = publisher;
    set_subscriber(Location) = subscriber;
    set_shared_memory_size(Main) = shared_memory_size;
    set_limit(Main) = limit;
    set_message_ttl(Main) = message_ttl;
    set_header_template_file(Location) = header_template_file;
    set_message_template(Location) = message_template;
    set_literal_template(Location) = literal_template;
    set_id_flag(Location) = id_flag;
    set_id_choice(Location) = id_choice;
    set_retry(Location) = retry;
    set_compress(Location) = compress;
    set_log_disconnect(Location) = log_disconnect;
    set_token_from(Location) = token_setters::from;
    set_token_keys(Location) = token_setters::keys;
    set_token_audience(Location) = token_setters::audience;
    set_token_leeway(Location) = token_setters::leeway;
    set_token_revoked(Location) = token_setters::revoked;
    set_token_ticket(Location) = token_setters::ticket;
    set_detach_tls(Location) = detach_tls;
}

/// `push_stream_detach_tls`: `on` needs a library that lets a connection go.
fn detach_tls(mut directive: Directive<'_, Location>) -> *mut c_char {
    let problem = directive.set_flag();
    if problem.is_null()
        && directive.level.detach_tls == 1
        && let Err(reason) = openssl::check()
    {
        let cf = directive.conf().raw();
        ngx_conf_log_error!(NGX_LOG_EMERG, cf, "push_stream_detach_tls on is not possible: {reason}");
        return REPORTED;
    }
    problem
}

fn statistics(directive: Directive<'_, Location>) -> *mut c_char {
    install(directive, Role::Statistics, http::statistics_handler);
    ptr::null_mut()
}

fn session_control(directive: Directive<'_, Location>) -> *mut c_char {
    if directive.level.role.is_some() {
        return verdict(Err(c"is duplicate"));
    }
    install(directive, Role::SessionControl, http::session_control_handler);
    ptr::null_mut()
}

fn console(directive: Directive<'_, Location>) -> *mut c_char {
    if directive.level.role.is_some() {
        return verdict(Err(c"is duplicate"));
    }
    install(directive, Role::Console, http::console_handler);
    ptr::null_mut()
}

fn console_worker(directive: Directive<'_, Location>) -> *mut c_char {
    watch(directive, |level| &mut level.console_workers)
}

fn console_node(directive: Directive<'_, Location>) -> *mut c_char {
    watch(directive, |level| &mut level.console_nodes)
}

/// A name, which is shown, and the path of a location that leads there.
fn watch(directive: Directive<'_, Location>, list: fn(&mut Location) -> &mut Vec<Watched>) -> *mut c_char {
    let &[_, name, uri] = directive.words() else {
        return verdict(Err(c"needs a name and a path"));
    };
    if !uri.as_bytes().starts_with(b"/") {
        return verdict(Err(c"needs the path of a location, which begins with a slash"));
    }
    // They would be parts of the path, not the beginning of arguments.
    if uri.as_bytes().iter().any(|byte| matches!(byte, b'?' | b'#' | b'$')) {
        return verdict(Err(c"takes a path without arguments and variables"));
    }
    let list = list(directive.level);
    if list.iter().any(|one| one.name.as_bytes() == name.as_bytes()) {
        return verdict(Err(c"has this name already in this location"));
    }
    list.push(Watched { name, uri });
    ptr::null_mut()
}

fn publisher(directive: Directive<'_, Location>) -> *mut c_char {
    let words = directive.words();
    if directive.level.role.is_some() {
        return verdict(Err(c"is duplicate"));
    }
    let mode = match words.get(1).map(ngx_str_t::as_bytes) {
        None => PublisherMode::Normal,
        Some(word) if word.eq_ignore_ascii_case(b"normal") => PublisherMode::Normal,
        Some(word) if word.eq_ignore_ascii_case(b"admin") => PublisherMode::Admin,
        Some(_) => return unknown_mode(directive.conf(), "push_stream_publisher", &words[1], "normal, admin"),
    };
    install(directive, Role::Publisher(mode), http::publisher_handler);
    ptr::null_mut()
}

fn subscriber(directive: Directive<'_, Location>) -> *mut c_char {
    const ACCEPTED: &str = "streaming, polling, long-polling, eventsource, websocket";
    let words = directive.words();
    if directive.level.role.is_some() {
        return verdict(Err(c"is duplicate"));
    }
    let mode = match words.get(1).map(|word| word.as_bytes().to_ascii_lowercase()).as_deref() {
        None | Some(b"streaming") => SubscriberMode::Streaming,
        Some(b"polling") => SubscriberMode::Polling,
        Some(b"long-polling") => SubscriberMode::LongPolling,
        Some(b"eventsource") => SubscriberMode::EventSource,
        Some(b"websocket") => SubscriberMode::WebSocket,
        Some(_) => return unknown_mode(directive.conf(), "push_stream_subscriber", &words[1], ACCEPTED),
    };
    install(directive, Role::Subscriber(mode), http::subscriber_handler);
    ptr::null_mut()
}

fn unknown_mode(conf: Conf<'_>, directive: &str, word: &ngx_str_t, accepted: &str) -> *mut c_char {
    ngx_conf_log_error!(
        NGX_LOG_ERR,
        conf.raw(),
        "push stream module: invalid {directive} mode value: {word}, accepted values ({accepted})"
    );
    REPORTED
}

/// Gives the location its role. nginx's own If-Modified-Since processing would turn our 200 into a 304.
fn install(
    directive: Directive<'_, Location>,
    role: Role,
    handler: unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t,
) {
    directive.level.role = Some(role);
    let conf = directive.conf();
    let main = main_of(conf);
    if !main.used {
        (main.used, main.first_used) = (true, Place::of(conf));
    }
    let core = conf.core_location();
    core.handler = Some(handler);
    core.if_modified_since = NGX_HTTP_IMS_OFF as ngx_uint_t;
}

fn shared_memory_size(directive: Directive<'_, Main>) -> *mut c_char {
    let (conf, words) = (directive.conf(), directive.words());
    let main = directive.level;
    match zone::Wanted::parse(conf, words) {
        Ok(wanted) if main.zones.iter().any(|zone| zone.name == wanted.name) => {
            ngx_conf_log_error!(NGX_LOG_EMERG, conf.raw(), "duplicate zone \"{}\"", wanted.name);
            REPORTED
        }
        Ok(wanted) => {
            main.zones.push(wanted);
            ptr::null_mut()
        }
        Err(reported) => reported,
    }
}

/// Records where a value is written that is checked when the whole http block was read.
fn note(directive: &mut Directive<'_, Main>) {
    let place = Place::of(directive.conf());
    directive.level.limits_written.push((directive.offset(), place));
}

/// Setter of a number that is checked when the whole http block was read.
fn limit(mut directive: Directive<'_, Main>) -> *mut c_char {
    note(&mut directive);
    directive.set_number()
}

/// Setter of a time that is checked when the whole http block was read.
fn message_ttl(mut directive: Directive<'_, Main>) -> *mut c_char {
    note(&mut directive);
    directive.set_seconds()
}

fn header_template_file(directive: Directive<'_, Location>) -> *mut c_char {
    let words = directive.words();
    if !directive.level.header_template.data.is_null() {
        return verdict(Err(c"is duplicate or template set by 'push_stream_header_template'"));
    }
    let Ok(text) = std::fs::read(OsStr::from_bytes(words[1].as_bytes())) else {
        ngx_conf_log_error!(
            NGX_LOG_ERR,
            directive.conf().raw(),
            "push stream module: unable to open file \"{}\" for header template",
            words[1]
        );
        return REPORTED;
    };
    let Some(text) = directive.keep(&text) else {
        return REPORTED;
    };
    directive.level.header_template = text;
    ptr::null_mut()
}

fn message_template(mut directive: Directive<'_, Location>) -> *mut c_char {
    let (problem, words) = (directive.set_text(), directive.words());
    if problem.is_null() {
        if let Some(misused) = template::misused(words[1].as_bytes()) {
            let conf = directive.conf().raw();
            ngx_conf_log_error!(NGX_LOG_EMERG, conf, "push stream module: {}: {misused}", words[0]);
            return REPORTED;
        }
        for word in template::unknown_words(words[1].as_bytes()) {
            let word = String::from_utf8_lossy(word);
            warn(
                directive.conf(),
                format_args!("{word} in {} is no word of templates, and is sent as it is", words[0]),
            );
        }
    }
    problem
}

/// Setter of a template without substitutions.
fn literal_template(mut directive: Directive<'_, Location>) -> *mut c_char {
    let (problem, words) = (directive.set_text(), directive.words());
    if problem.is_null()
        && let Some(word) = template::tokens(words[1].as_bytes()).next()
    {
        let word = String::from_utf8_lossy(word);
        warn(
            directive.conf(),
            format_args!("{word} in {} is not replaced, and is sent as it is", words[0]),
        );
    }
    problem
}

/// Makes the zone track the order of ids.
fn track(directive: &Directive<'_, Location>, auto: bool) {
    let main = main_of(directive.conf());
    main.track_ids = true;
    main.auto_ids |= auto;
}

/// Setter of a flag that needs the zone to track the order of ids.
fn id_flag(mut directive: Directive<'_, Location>) -> *mut c_char {
    let problem = directive.set_flag();
    if problem.is_null() && directive.words()[1].as_bytes().eq_ignore_ascii_case(b"on") {
        track(&directive, directive.offset() == offset_of!(Location, auto_event_id));
    }
    problem
}

/// Setter of a choice that needs the zone to track the order of ids, unless it is `exact`.
fn id_choice(mut directive: Directive<'_, Location>) -> *mut c_char {
    let problem = directive.set_enum();
    if problem.is_null() && !directive.words()[1].as_bytes().eq_ignore_ascii_case(b"exact") {
        track(&directive, false);
    }
    problem
}

fn retry(directive: Directive<'_, Location>) -> *mut c_char {
    let words = directive.words();
    if directive.level.eventsource_retry.is_some() {
        return verdict(Err(c"is duplicate"));
    }
    let (Some(min_ms), Some(max_ms)) = (parse_time(&words[1]), parse_time(words.last().unwrap_or(&words[1]))) else {
        return verdict(Err(c"invalid value"));
    };
    if min_ms > max_ms {
        return refuse(
            directive.conf(),
            c"push_stream_eventsource_retry: the first time cannot be longer than the second.",
        );
    }
    directive.level.eventsource_retry = Some(Retry { min_ms, max_ms });
    ptr::null_mut()
}

fn compress(directive: Directive<'_, Location>) -> *mut c_char {
    let words = &directive.words()[1..];
    if directive.level.compress.is_some() {
        return verdict(Err(c"is duplicate"));
    }
    let mut codings = Vec::new();
    for word in words {
        let off = word.as_bytes() == b"off" && words.len() == 1;
        let named = |coding: &&Coding| coding.name().as_bytes() == word.as_bytes();
        match Coding::ALL.iter().find(named) {
            _ if off => {}
            Some(coding) if codings.contains(coding) => {
                ngx_conf_log_error!(
                    NGX_LOG_EMERG,
                    directive.conf().raw(),
                    "push_stream_compress names \"{word}\" twice"
                );
                return REPORTED;
            }
            Some(coding) if !coding.is_built() => {
                ngx_conf_log_error!(
                    NGX_LOG_EMERG,
                    directive.conf().raw(),
                    "push_stream_compress {word}: this module was built without the cargo feature \"{word}\""
                );
                return REPORTED;
            }
            Some(coding) => codings.push(*coding),
            None => {
                ngx_conf_log_error!(
                    NGX_LOG_EMERG,
                    directive.conf().raw(),
                    "invalid coding \"{word}\" in push_stream_compress, accepted are off, or: gzip, zstd"
                );
                return REPORTED;
            }
        }
    }
    directive.level.compress = Some(codings);
    ptr::null_mut()
}

fn log_disconnect(directive: Directive<'_, Location>) -> *mut c_char {
    let words = directive.words();
    if directive.level.log_disconnect != unset::FILE {
        return verdict(Err(c"is duplicate"));
    }
    if words[1].is_empty() {
        return verdict(Err(c"wants a file or off"));
    }
    if words[1].as_bytes() == b"off" {
        directive.level.log_disconnect = ptr::null_mut();
        return ptr::null_mut();
    }
    directive.level.log_disconnect = directive.open_file(&words[1]);
    if directive.level.log_disconnect.is_null() {
        return REPORTED;
    }
    ptr::null_mut()
}
