//! URLs of operator requests: arguments, and the bookmarks of long lists.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::{operators, percent, query};

fuzz_target!(|text: &[u8]| {
    let mut written = text.split(|&byte| byte == b'&').filter(|argument| !argument.is_empty());
    for (name, value) in query::arguments(text) {
        let argument = written.next().expect("each argument is in the text");
        let mut halves = argument.splitn(2, |&byte| byte == b'=');
        assert_eq!(Some(name), halves.next().map(percent::decode));
        assert_eq!(value, halves.next().map(percent::decode));
    }
    assert!(written.next().is_none(), "no argument is left out");
    check_bookmark::<1>(text);
    check_bookmark::<2>(text);
    check_bookmark::<3>(text);
});

/// The numbers of an accepted bookmark survive being written and read again, and every issued bookmark is accepted.
fn check_bookmark<const N: usize>(text: &[u8]) {
    if let Some(numbers) = operators::read_bookmark::<N>(text) {
        assert_eq!(
            operators::read_bookmark::<N>(operators::bookmark(&numbers).as_bytes()),
            Some(numbers)
        );
    }
    let numbers: [u64; N] = std::array::from_fn(|index| {
        let bytes = text.chunks(8).nth(index).unwrap_or(&[]);
        bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    });
    assert_eq!(
        operators::read_bookmark::<N>(operators::bookmark(&numbers).as_bytes()),
        Some(numbers)
    );
}
