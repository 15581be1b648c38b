//! CRC-32 as in gzip's trailer, combined from those of pieces.
//!
//! The CRC of two texts is that of the first, shifted by the length of the second, plus that of the second. The shift
//! is linear, so it is looked up in tables that are made once for a piece, whoever gets it.

/// CRC-32's polynomial, lowest power first.
const POLYNOMIAL: u32 = 0xedb8_8320;

/// The polynomial 1.
const ONE: u32 = 1 << 31;

/// x to the power of 2 to the power of the index.
const POWERS: [u32; 32] = {
    let mut powers = [ONE >> 1; 32];
    let mut index = 1;
    while index < 32 {
        powers[index] = multiply(powers[index - 1], powers[index - 1]);
        index += 1;
    }
    powers
};

/// The product of two polynomials, modulo CRC-32's.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, ONE);
    while bit > 0 {
        if a & bit != 0 {
            product ^= b;
        }
        bit >>= 1;
        b = by_x(b);
    }
    product
}

const fn by_x(polynomial: u32) -> u32 {
    if polynomial & 1 == 0 {
        polynomial >> 1
    } else {
        polynomial >> 1 ^ POLYNOMIAL
    }
}

/// x to the power of the number of bits in `bytes` bytes.
fn shift(bytes: u32) -> u32 {
    const BITS_IN_A_BYTE: usize = 3;
    let bits = (0..32).filter(|bit| bytes >> bit & 1 != 0);
    bits.fold(ONE, |power, bit| multiply(POWERS[(bit + BITS_IN_A_BYTE) % 32], power))
}

/// Checksum of a piece, ready to be appended to those of many streams.
#[derive(Debug)]
pub struct Checksum {
    crc: u32,
    length: u32,
    /// The shift by its length, for each half byte of the CRC before it.
    tables: Box<[[u32; 16]; 8]>,
}

impl Checksum {
    /// # Panics
    /// Never: pieces are shorter than 4 GiB, and more is cut to 32 bits as in the trailer.
    pub fn of(bytes: &[u8]) -> Checksum {
        let length = bytes.len() as u32;
        let mut tables = Box::new([[0; 16]; 8]);
        let mut image = shift(length);
        for bit in (0..32).rev() {
            let (table, bit) = (&mut tables[bit / 4], bit % 4);
            table[1 << bit] = image;
            image = by_x(image);
        }
        for table in tables.iter_mut() {
            for index in 3..16_usize {
                let lowest = index & index.wrapping_neg();
                table[index] = table[lowest] ^ table[index ^ lowest];
            }
        }
        Checksum {
            crc: crc32fast::hash(bytes),
            length,
            tables,
        }
    }
}

/// CRC-32 and length, modulo 2^32, of a stream so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub crc: u32,
    pub length: u32,
}

impl Sum {
    /// Appends a piece to the stream.
    pub fn append(&mut self, piece: &Checksum) {
        let half = |index: usize| piece.tables[index][(self.crc >> (4 * index) & 15) as usize];
        self.crc = (0..8).fold(piece.crc, |crc, index| crc ^ half(index));
        self.length = self.length.wrapping_add(piece.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_add_up(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..9)) {
            let mut sum = Sum::default();
            for piece in &pieces {
                sum.append(&Checksum::of(piece));
            }
            let whole = pieces.concat();
            prop_assert_eq!(sum, Sum { crc: crc32fast::hash(&whole), length: whole.len() as u32 });
        }
    }

    #[test]
    fn long_pieces_are_shifted_by_their_length() {
        let (first, second) = (vec![7; 100_000], vec![9; 70_001]);
        let mut sum = Sum::default();
        sum.append(&Checksum::of(&first));
        sum.append(&Checksum::of(&second));
        assert_eq!(sum.crc, crc32fast::hash(&[first, second].concat()));
    }
}
