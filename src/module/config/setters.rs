//! Setters: what nginx calls for each directive that its own setters do not fit.

use std::ffi::{OsStr, c_char, c_void};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use ngx::ffi::*;
use ngx::ngx_conf_log_error;
use push_stream_core::wire::template;

use super::ids::Retry;
use super::location::{Location, PublisherMode, Role, SubscriberMode};
use super::main::{Main, main_of};
use super::place::Place;
use super::values::{REPORTED, arguments, core_location_of, refuse, unset, verdict, warn};
use super::zone;
use crate::ffi::pool;
use crate::http;

pub unsafe extern "C" fn set_statistics(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes this level's configuration.
    unsafe { install(cf, conf, Role::Statistics, http::statistics_handler) };
    ptr::null_mut()
}

pub unsafe extern "C" fn set_publisher(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes this level's configuration and the directive's words.
    let (taken, words) = unsafe { ((*conf.cast::<Location>()).role.is_some(), arguments(cf)) };
    if taken {
        return verdict(Err(c"is duplicate"));
    }
    let mode = match words.get(1).map(ngx_str_t::as_bytes) {
        None => PublisherMode::Normal,
        Some(word) if word.eq_ignore_ascii_case(b"normal") => PublisherMode::Normal,
        Some(word) if word.eq_ignore_ascii_case(b"admin") => PublisherMode::Admin,
        Some(_) => return unknown_mode(cf, "push_stream_publisher", &words[1], "normal, admin"),
    };
    // SAFETY: as above.
    unsafe { install(cf, conf, Role::Publisher(mode), http::publisher_handler) };
    ptr::null_mut()
}

pub unsafe extern "C" fn set_subscriber(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    const ACCEPTED: &str = "streaming, polling, long-polling, eventsource, websocket";
    // SAFETY: nginx passes this level's configuration and the directive's words.
    let (taken, words) = unsafe { ((*conf.cast::<Location>()).role.is_some(), arguments(cf)) };
    if taken {
        return verdict(Err(c"is duplicate"));
    }
    let mode = match words.get(1).map(|word| word.as_bytes().to_ascii_lowercase()).as_deref() {
        None | Some(b"streaming") => SubscriberMode::Streaming,
        Some(b"polling") => SubscriberMode::Polling,
        Some(b"long-polling") => SubscriberMode::LongPolling,
        Some(b"eventsource") => SubscriberMode::EventSource,
        Some(b"websocket") => SubscriberMode::WebSocket,
        Some(_) => return unknown_mode(cf, "push_stream_subscriber", &words[1], ACCEPTED),
    };
    // SAFETY: as above.
    unsafe { install(cf, conf, Role::Subscriber(mode), http::subscriber_handler) };
    ptr::null_mut()
}

fn unknown_mode(cf: *mut ngx_conf_t, directive: &str, word: &ngx_str_t, accepted: &str) -> *mut c_char {
    ngx_conf_log_error!(
        NGX_LOG_ERR,
        cf,
        "push stream module: invalid {directive} mode value: {word}, accepted values ({accepted})"
    );
    REPORTED
}

/// Gives the location its role. nginx's own If-Modified-Since processing would turn our 200 into a 304.
unsafe fn install(
    cf: *mut ngx_conf_t,
    conf: *mut c_void,
    role: Role,
    handler: unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t,
) {
    // SAFETY: `cf` and `conf` are what nginx passed to the setter.
    unsafe {
        (*conf.cast::<Location>()).role = Some(role);
        let main = main_of(cf);
        if !main.used {
            (main.used, main.first_used) = (true, Place::of(cf));
        }
        let core = core_location_of(cf);
        core.handler = Some(handler);
        core.if_modified_since = NGX_HTTP_IMS_OFF as ngx_uint_t;
    }
}

pub unsafe extern "C" fn set_shared_memory_size(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes our main configuration and the directive's words.
    let (main, words) = unsafe { (&mut *conf.cast::<Main>(), arguments(cf)) };
    // SAFETY: `cf` is valid for the call.
    match unsafe { zone::Wanted::parse(cf, words) } {
        Ok(wanted) if main.zones.iter().any(|zone| zone.name == wanted.name) => {
            ngx_conf_log_error!(NGX_LOG_EMERG, cf, "duplicate zone \"{}\"", wanted.name);
            REPORTED
        }
        Ok(wanted) => {
            main.zones.push(wanted);
            ptr::null_mut()
        }
        Err(reported) => reported,
    }
}

/// Setter of a number that is checked when the whole http block was read.
pub unsafe extern "C" fn set_limit(cf: *mut ngx_conf_t, command: *mut ngx_command_t, conf: *mut c_void) -> *mut c_char {
    // SAFETY: nginx passes the directive, its words and our main configuration.
    unsafe {
        (*conf.cast::<Main>()).note(cf, (*command).offset);
        ngx_conf_set_num_slot(cf, command, conf)
    }
}

/// Setter of a time that is checked when the whole http block was read.
pub unsafe extern "C" fn set_message_ttl(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: as above.
    unsafe {
        (*conf.cast::<Main>()).note(cf, (*command).offset);
        ngx_conf_set_sec_slot(cf, command, conf)
    }
}

pub unsafe extern "C" fn set_header_template_file(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes this level's configuration and the directive's words.
    let (location, words) = unsafe { (&mut *conf.cast::<Location>(), arguments(cf)) };
    if !location.header_template.data.is_null() {
        return verdict(Err(c"is duplicate or template set by 'push_stream_header_template'"));
    }
    let Ok(text) = std::fs::read(OsStr::from_bytes(words[1].as_bytes())) else {
        ngx_conf_log_error!(
            NGX_LOG_ERR,
            cf,
            "push stream module: unable to open file \"{}\" for header template",
            words[1]
        );
        return REPORTED;
    };
    // SAFETY: the pool lives as long as the configuration.
    let Some(copy) = (unsafe { pool::copy((*cf).pool, &text) }) else {
        return REPORTED;
    };
    location.header_template = ngx_str_t {
        len: text.len(),
        data: copy.as_ptr(),
    };
    ptr::null_mut()
}

pub unsafe extern "C" fn set_message_template(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes the directive, its words and this level's configuration.
    let (problem, words) = unsafe { (ngx_conf_set_str_slot(cf, command, conf), arguments(cf)) };
    if problem.is_null() {
        for word in template::unknown_words(words[1].as_bytes()) {
            let word = String::from_utf8_lossy(word);
            warn(
                cf,
                format_args!("{word} in {} is no word of templates, and is sent as it is", words[0]),
            );
        }
    }
    problem
}

/// Setter of a template without substitutions.
pub unsafe extern "C" fn set_literal_template(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: as above.
    let (problem, words) = unsafe { (ngx_conf_set_str_slot(cf, command, conf), arguments(cf)) };
    if problem.is_null()
        && let Some(word) = template::tokens(words[1].as_bytes()).next()
    {
        let word = String::from_utf8_lossy(word);
        warn(
            cf,
            format_args!("{word} in {} is not replaced, and is sent as it is", words[0]),
        );
    }
    problem
}

/// Makes the zone track the order of ids.
unsafe fn track(cf: *mut ngx_conf_t, auto: bool) {
    // SAFETY: `cf` is what nginx passed to the setter.
    let main = unsafe { main_of(cf) };
    main.track_ids = true;
    main.auto_ids |= auto;
}

/// Setter of a flag that needs the zone to track the order of ids.
pub unsafe extern "C" fn set_id_flag(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes the directive, its words and this level's configuration.
    unsafe {
        let problem = ngx_conf_set_flag_slot(cf, command, conf);
        if problem.is_null() && arguments(cf)[1].as_bytes().eq_ignore_ascii_case(b"on") {
            track(cf, (*command).offset == offset_of!(Location, auto_event_id));
        }
        problem
    }
}

/// Setter of a choice that needs the zone to track the order of ids, unless it is `exact`.
pub unsafe extern "C" fn set_id_choice(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes the directive, its words and this level's configuration.
    unsafe {
        let problem = ngx_conf_set_enum_slot(cf, command, conf);
        if problem.is_null() && !arguments(cf)[1].as_bytes().eq_ignore_ascii_case(b"exact") {
            track(cf, false);
        }
        problem
    }
}

pub unsafe extern "C" fn set_retry(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes this level's configuration and the directive's words.
    let (location, words) = unsafe { (&mut *conf.cast::<Location>(), arguments(cf)) };
    if location.eventsource_retry.is_some() {
        return verdict(Err(c"is duplicate"));
    }
    let time = |word: &ngx_str_t| {
        let mut word = *word;
        // SAFETY: `word` is a valid string.
        let time = unsafe { ngx_parse_time(&mut word, 0) };
        u32::try_from(time).ok()
    };
    let (Some(min_ms), Some(max_ms)) = (time(&words[1]), time(words.last().unwrap_or(&words[1]))) else {
        return verdict(Err(c"invalid value"));
    };
    if min_ms > max_ms {
        return refuse(
            cf,
            c"push_stream_eventsource_retry: the first time cannot be longer than the second.",
        );
    }
    location.eventsource_retry = Some(Retry { min_ms, max_ms });
    ptr::null_mut()
}

pub unsafe extern "C" fn set_log_disconnect(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes this level's configuration and the directive's words, which live as long as the cycle.
    unsafe {
        let (location, words) = (&mut *conf.cast::<Location>(), arguments(cf));
        if location.log_disconnect != unset::FILE {
            return verdict(Err(c"is duplicate"));
        }
        if words[1].is_empty() {
            return verdict(Err(c"wants a file or off"));
        }
        if words[1].as_bytes() == b"off" {
            location.log_disconnect = ptr::null_mut();
            return ptr::null_mut();
        }
        // The file is opened with the cycle's other files, and reopened when nginx gets USR1.
        let mut name = words[1];
        location.log_disconnect = ngx_conf_open_file((*cf).cycle, &mut name);
        if location.log_disconnect.is_null() {
            return REPORTED;
        }
    }
    ptr::null_mut()
}
