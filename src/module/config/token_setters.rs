//! Setters of the directives about access tokens.

use std::ffi::{CStr, c_char};
use std::ptr;

use ngx::ffi::*;
use ngx::ngx_conf_log_error;
use push_stream_core::token::Algorithm;

use super::location::Location;
use super::token::{Carrier, LONGEST_LEEWAY, LONGEST_TICKET};
use super::values::{REPORTED, verdict};
use crate::ffi::directive::{Directive, parse_seconds};
use crate::token::KeySource;

const DUPLICATE: &CStr = c"is duplicate";

fn refuse(directive: &Directive<'_, Location>, word: &ngx_str_t, reason: &str) -> *mut c_char {
    let name = &directive.words()[0];
    ngx_conf_log_error!(
        NGX_LOG_ERR,
        directive.conf().raw(),
        "push stream module: {name}: \"{word}\" {reason}"
    );
    REPORTED
}

pub fn from(directive: Directive<'_, Location>) -> *mut c_char {
    if directive.level.token.carriers.is_some() {
        return verdict(Err(DUPLICATE));
    }
    let mut carriers = Vec::new();
    for word in &directive.words()[1..] {
        let Ok(text) = str::from_utf8(word.as_bytes()) else {
            return refuse(&directive, word, "is not UTF-8");
        };
        carriers.push(match text.split_once('=') {
            _ if text == "bearer" => Carrier::Bearer,
            Some(("cookie", name)) if !name.is_empty() => Carrier::Cookie(name.as_bytes().into()),
            Some(("query", name)) if !name.is_empty() => Carrier::Query(name.to_owned()),
            _ if text.starts_with('$') => match directive.compile(word) {
                Some(value) => Carrier::Value(value),
                None => return REPORTED,
            },
            _ => {
                return refuse(
                    &directive,
                    word,
                    "is none of bearer, cookie=NAME, query=NAME and a $variable",
                );
            }
        });
    }
    directive.level.token.carriers = Some(carriers);
    ptr::null_mut()
}

pub fn keys(directive: Directive<'_, Location>) -> *mut c_char {
    let words = directive.words();
    let Some(path) = directive.full_name(&words[1]) else {
        return REPORTED;
    };
    let mut source = KeySource {
        path,
        issuer: None,
        algorithms: Vec::new(),
    };
    for word in &words[2..] {
        let text = str::from_utf8(word.as_bytes()).unwrap_or_default();
        match text.split_once('=') {
            Some(("issuer", issuer)) if !issuer.is_empty() && source.issuer.is_none() => {
                source.issuer = Some(issuer.to_owned());
            }
            Some(("algorithms", names)) if source.algorithms.is_empty() => {
                for name in names.split(',') {
                    match Algorithm::named(name) {
                        Some(algorithm) => source.algorithms.push(algorithm),
                        None => return refuse(&directive, word, "names an algorithm that is not supported"),
                    }
                }
            }
            _ => {
                let reason = "is neither issuer=URL nor algorithms=NAME,..., or is given twice";
                return refuse(&directive, word, reason);
            }
        }
    }
    directive.level.token.keys.push(source);
    ptr::null_mut()
}

pub fn audience(directive: Directive<'_, Location>) -> *mut c_char {
    if directive.level.token.audience.is_some() {
        return verdict(Err(DUPLICATE));
    }
    let words = directive.words()[1..].iter();
    match words
        .map(|word| str::from_utf8(word.as_bytes()).map(str::to_owned))
        .collect()
    {
        Ok(values) => directive.level.token.audience = Some(values),
        Err(_) => return verdict(Err(c"is not UTF-8")),
    }
    ptr::null_mut()
}

pub fn leeway(directive: Directive<'_, Location>) -> *mut c_char {
    if directive.level.token.leeway.is_some() {
        return verdict(Err(DUPLICATE));
    }
    let word = &directive.words()[1];
    match parse_seconds(word).filter(|seconds| *seconds <= LONGEST_LEEWAY) {
        Some(seconds) => directive.level.token.leeway = Some(seconds),
        None => return refuse(&directive, word, "is no time of at most 5m"),
    }
    ptr::null_mut()
}

pub fn revoked(directive: Directive<'_, Location>) -> *mut c_char {
    if directive.level.token.revoked.is_some() {
        return verdict(Err(DUPLICATE));
    }
    match directive.full_name(&directive.words()[1]) {
        Some(path) => directive.level.token.revoked = Some(path),
        None => return REPORTED,
    }
    ptr::null_mut()
}

pub fn ticket(directive: Directive<'_, Location>) -> *mut c_char {
    if directive.level.token.ticket.is_some() {
        return verdict(Err(DUPLICATE));
    }
    let word = &directive.words()[1];
    if word.as_bytes() == b"off" {
        directive.level.token.ticket = Some(None);
        return ptr::null_mut();
    }
    match parse_seconds(word).filter(|seconds| (1..=LONGEST_TICKET).contains(seconds)) {
        Some(seconds) => directive.level.token.ticket = Some(Some(seconds)),
        None => return refuse(&directive, word, "is neither off nor a time from 1s to 1h"),
    }
    ptr::null_mut()
}
