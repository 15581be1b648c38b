//! Compressed WebSocket messages, as this module makes them for its clients and takes them from them: they inflate to
//! what they were; changed ones never to more than is allowed, and to the same wherever the network cuts. The first
//! bytes choose: window and level, where to cut, what to change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use push_stream_core::wire::coding::deflate::Deflater;
use push_stream_core::wire::coding::permessage::compress;
use push_stream_core::wire::websocket::{Decoder, Opcode, Received, Rules, push_header};

const MAX_MESSAGE: u64 = 4096;
const RULES: Rules = Rules {
    max_message: MAX_MESSAGE,
    masked_only: false,
    binary: true,
    keep: true,
    deflate: true,
};

fuzz_target!(|input: &[u8]| {
    let [choice, cut, at, change, rest @ ..] = input else {
        return;
    };
    let mut deflater = Deflater::new(u32::from(choice % 9) + 1, 9 + (choice >> 4) % 7);
    let (mut wire, mut sent, mut compressed) = (Vec::new(), Vec::new(), Vec::new());
    for text in rest.split(|&byte| byte == 0) {
        // Some are long, and repeat themselves.
        let text = text.repeat(1 + usize::from(text.first() == Some(&b'r')) * 300);
        // A client's messages refer to nothing before them.
        deflater.reset();
        assert!(compress(&mut deflater, &text, &mut compressed));
        let start = wire.len();
        push_header(Opcode::Binary, compressed.len(), &mut wire);
        wire[start] |= 0x40;
        wire.extend_from_slice(&compressed);
        sent.push(text);
    }
    if *change != 0 {
        let at = usize::from(*at) * wire.len() / 256;
        wire[at] ^= change;
    }
    let step = usize::from(*cut).max(1);
    let got = decode([&wire[..]]);
    assert_eq!(decode(wire.chunks(step)), got, "cut every {step} bytes");
    if *change == 0 {
        let short = |text: &&Vec<u8>| text.len() as u64 <= MAX_MESSAGE;
        let sent: Vec<&Vec<u8>> = sent.iter().take_while(short).collect();
        assert!(sent.iter().zip(&got).all(|(sent, got)| got == *sent));
        assert_eq!(sent.len(), got.len());
    }
});

/// The messages up to the first that is wrong.
fn decode<'i>(pieces: impl IntoIterator<Item = &'i [u8]>) -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new(RULES);
    let mut got = Vec::new();
    for mut piece in pieces {
        while let Some(received) = decoder.next(&mut piece) {
            match received {
                Ok(Received::Text(text) | Received::Binary(text)) => {
                    assert!(text.len() as u64 <= MAX_MESSAGE);
                    got.push(text.to_vec());
                }
                Ok(_) => {}
                Err(_) => return got,
            }
        }
    }
    got
}
