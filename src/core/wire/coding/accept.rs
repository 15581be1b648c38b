//! Accept-Encoding (RFC 9110 §12.5.3).

use super::Coding;

/// Weight of something that is accepted without a q value, in thousandths.
const FULL: u16 = 1000;

/// The coding for a client with these Accept-Encoding lines, out of those offered, the server's favourite first; None
/// = as it is. A header that cannot be understood asks for nothing.
pub fn choose<'h>(lines: impl IntoIterator<Item = &'h [u8]>, offered: &[Coding]) -> Option<Coding> {
    let mut named: Vec<(&[u8], u16)> = Vec::new();
    for line in lines {
        for element in line.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if !element.is_empty() {
                named.push(parse(element)?);
            }
        }
    }
    let weight = |is_it: &dyn Fn(&[u8]) -> bool| named.iter().filter(|(name, _)| is_it(name)).map(|&(_, q)| q).max();
    let rest = weight(&|name| name == b"*");
    // What is not named is not asked for, except through `*`; the answer as it is comes last unless it is named.
    let identity = weight(&|name| name.eq_ignore_ascii_case(b"identity")).unwrap_or(0);
    let best = offered
        .iter()
        .map(|&coding| {
            let named = weight(&|name| Coding::named(name) == Some(coding));
            (coding, named.or(rest).unwrap_or(0))
        })
        .rev()
        .max_by_key(|&(_, weight)| weight)?;
    (best.1 > 0 && best.1 >= identity).then_some(best.0)
}

/// One element: a coding and its weight.
fn parse(element: &[u8]) -> Option<(&[u8], u16)> {
    let mut parts = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().filter(|name| is_token(name))?;
    let weight = match parts.next() {
        None => FULL,
        Some(parameter) => {
            let value = parameter
                .strip_prefix(b"q=")
                .or_else(|| parameter.strip_prefix(b"Q="))?;
            parse_weight(value)?
        }
    };
    parts.next().is_none().then_some((name, weight))
}

/// A q value in thousandths: a digit, and at most three behind the point (RFC 9110 §12.4.2).
fn parse_weight(value: &[u8]) -> Option<u16> {
    let (&whole, behind) = value.split_first()?;
    let digits = match behind {
        [] => behind,
        [b'.', digits @ ..] if digits.len() <= 3 => digits,
        _ => return None,
    };
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    let mut weight = digit(whole)?;
    for place in 0..3 {
        weight = weight * 10 + digits.get(place).map_or(Some(0), |&byte| digit(byte))?;
    }
    (weight <= FULL).then_some(weight)
}

fn is_token(name: &[u8]) -> bool {
    let is_special = |byte: &u8| b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || is_special(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gzip(lines: &[&str]) -> bool {
        choose(lines.iter().map(|line| line.as_bytes()), &[Coding::Gzip]) == Some(Coding::Gzip)
    }

    #[test]
    fn gzip_is_chosen_when_it_is_asked_for() {
        for line in [
            "gzip",
            "GZIP",
            "x-gzip",
            "gzip, deflate, br, zstd",
            "deflate;q=0.5,gzip;q=1.0",
            "br;q=1.0, gzip;q=0.8, *;q=0.1",
            "*",
            "*;q=0.001",
            "identity;q=0.5, gzip",
            "identity;q=0, gzip;q=0.2",
            "identity;q=0, *",
            " , gzip ; q=1.000 ,",
            "gzip;Q=0.3",
            "identity, gzip",
        ] {
            assert!(gzip(&[line]), "{line}");
        }
        assert!(gzip(&["br", "gzip;q=0.1"]));
    }

    #[test]
    fn of_equal_weights_the_servers_favourite_is_chosen() {
        let choice = |line: &str, offered: &[Coding]| choose([line.as_bytes()], offered);
        let (zstd_first, gzip_first) = ([Coding::Zstd, Coding::Gzip], [Coding::Gzip, Coding::Zstd]);
        for line in [
            "gzip, deflate, br, zstd",
            "zstd, gzip",
            "*",
            "gzip;q=0.5, *;q=0.5",
            "identity, *",
        ] {
            assert_eq!(choice(line, &zstd_first), Some(Coding::Zstd), "{line}");
            assert_eq!(choice(line, &gzip_first), Some(Coding::Gzip), "{line}");
        }
        for offered in [&zstd_first, &gzip_first] {
            assert_eq!(choice("zstd;q=0.9, gzip", offered), Some(Coding::Gzip));
            assert_eq!(choice("zstd, gzip;q=0.999", offered), Some(Coding::Zstd));
            assert_eq!(choice("gzip;q=0, *", offered), Some(Coding::Zstd));
            assert_eq!(choice("ZSTD", offered), Some(Coding::Zstd));
            assert_eq!(choice("gzip", offered), Some(Coding::Gzip));
            assert_eq!(choice("x-zstd, zstd;q=0", offered), None);
        }
    }

    #[test]
    fn everybody_else_gets_it_as_it_is() {
        for line in [
            "",
            ",",
            "br",
            "gzip;q=0",
            "gzip;q=0.000",
            "*;q=0",
            "gzip;q=0, *",
            "identity",
            "identity;q=0",
            "identity;q=0, br",
            "gzip;q=0.5, identity",
            "gzip;q=0.5, identity;q=0.501",
            "gzipped",
            "gzip;q=",
            "gzip;q=2",
            "gzip;q=1.001",
            "gzip;q=0.1234",
            "gzip;q=-1",
            "gzip;q=a",
            "gzip;level=9",
            "gzip;q=1;q=1",
            "gzip q=1",
            "g zip",
            "gzip, \u{1}",
            "\"gzip\"",
        ] {
            assert!(!gzip(&[line]), "{line}");
        }
        assert_eq!(choose([], &[Coding::Gzip]), None);
        assert_eq!(choose([&b"gzip"[..]], &[]), None);
    }
}
