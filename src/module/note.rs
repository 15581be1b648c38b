//! What the shared object says of itself without being loaded: an ELF note, for `push-stream-worker doctor --nginx` and
//! `readelf --notes`.
//!
//! nginx compares version and signature before any code of a module runs, and names neither remedy nor package.

use ngx::ffi::{NGINX_VERSION, NGX_RS_MODULE_SIGNATURE};

/// With the zero that ends it.
const NAME: [u8; 12] = *b"push-stream\0";

/// Of the text, filled up with zeros.
const LENGTH: usize = 256;

#[repr(C, align(4))]
pub struct Note {
    name_length: u32,
    text_length: u32,
    kind: u32,
    name: [u8; NAME.len()],
    /// Lines of `key=value`.
    text: [u8; LENGTH],
}

#[used]
#[unsafe(link_section = ".note.push-stream")]
pub static NOTE: Note = Note {
    name_length: NAME.len() as u32,
    text_length: LENGTH as u32,
    kind: 1,
    name: NAME,
    text: text(),
};

const fn text() -> [u8; LENGTH] {
    let parts: [&[u8]; 9] = [
        b"version=",
        env!("CARGO_PKG_VERSION").as_bytes(),
        b"\ncommit=",
        env!("PUSH_STREAM_COMMIT").as_bytes(),
        b"\nnginx=",
        NGINX_VERSION.to_bytes(),
        b"\nsignature=",
        NGX_RS_MODULE_SIGNATURE.to_bytes(),
        b"\n",
    ];
    let mut text = [0; LENGTH];
    let (mut at, mut part) = (0, 0);
    while part < parts.len() {
        let mut byte = 0;
        while byte < parts[part].len() {
            text[at] = parts[part][byte];
            at += 1;
            byte += 1;
        }
        part += 1;
    }
    text
}
