//! The incomplete last unit of a stream whose units may be cut anywhere.

#[derive(Debug, Default)]
pub struct Unfinished {
    bytes: Vec<u8>,
    /// Bytes missing in the unit, as far as known.
    missing: usize,
}

/// Progress of a parser.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Length of the complete units at the start.
    pub used: usize,
    /// Bytes missing in the next unit; 0 if unknown.
    pub missing: usize,
}

impl Unfinished {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Passes all pending input to `take`, unless `input` certainly completes no unit. Complete units are not copied.
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
