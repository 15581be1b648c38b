//! What has come of a stream whose units may be cut anywhere, and is not a whole unit yet.

#[derive(Debug, Default)]
pub struct Unfinished {
    bytes: Vec<u8>,
    /// Bytes until the unit is whole, as far as it has told.
    missing: usize,
}

/// What a parser has made of some bytes.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Length of the whole units at the start.
    pub used: usize,
    /// Bytes that the unit behind them still wants; 0 if it has not told.
    pub missing: usize,
}

impl Unfinished {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Has `take` look at everything that has come, unless `input` surely does not complete a unit. Bytes that come as
    /// whole units are not copied.
    pub fn feed(&mut self, input: &[u8], take: impl FnOnce(&[u8]) -> Taken) {
        if self.bytes.is_empty() {
            let taken = take(input);
            self.missing = taken.missing;
            self.bytes.extend_from_slice(&input[taken.used..]);
            return;
        }
        self.bytes.extend_from_slice(input);
        if input.len() < self.missing {
            self.missing -= input.len();
            return;
        }
        let mut all = std::mem::take(&mut self.bytes);
        let taken = take(&all);
        self.missing = taken.missing;
        if taken.used < all.len() {
            all.drain(..taken.used);
            self.bytes = all;
        }
    }
}
