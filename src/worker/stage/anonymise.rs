//! `anonymise`: removes personal data before anything leaves the machine.
//!
//! ```toml
//! anon = { type = "anonymise", drop = ["author.phone"], mask = ["author.name"], hash = ["author.email"], truncate_ip = ["author.ip"], key = { file = "keys/anon.key" } }
//! ```
//!
//! * `drop` removes the field.
//! * `mask` replaces the value by `"***"`, whatever its type.
//! * `hash` replaces the value by a pseudonym: 32 hex digits of the BLAKE3 hash under a secret key. The same value
//!   gives the same pseudonym as long as the key is the same; without the key, values cannot be guessed by trial. `3`
//!   and `"3"` are the same value.
//! * `truncate_ip` keeps the network: `/24` of IPv4, `/48` of IPv6. Other values are removed.
//!
//! A field that is missing or null is left as it is. An event parked before this stage is in the dead-letter file
//! unchanged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use serde_json::Value;

use super::{Flow, KEY_BYTES, Kind, Stage, key_file};
use crate::config::section::Section;
use crate::event::Event;
use crate::field::FieldPath;
use crate::json::{self, Digits};

pub const KIND: Kind = Kind {
    name: "anonymise",
    about: "drops, masks, hashes fields and shortens IP addresses",
    read,
};

const MASK: &str = "***";
/// 128 bits: practically no collision among 10^12 people.
const PSEUDONYM_HEX_DIGITS: usize = 32;

#[derive(Default)]
pub struct Anonymise {
    drop: Vec<FieldPath>,
    mask: Vec<FieldPath>,
    hash: Vec<FieldPath>,
    truncate_ip: Vec<FieldPath>,
    /// Present whenever `hash` is not empty.
    key: Option<[u8; KEY_BYTES]>,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let paths = |key| section.optional::<Vec<FieldPath>>(key).unwrap_or_default();
    let mut stage = Anonymise {
        drop: paths("drop"),
        mask: paths("mask"),
        hash: paths("hash"),
        truncate_ip: paths("truncate_ip"),
        key: None,
    };
    stage.key = section.table("key", key_file).flatten();
    if !stage.hash.is_empty() && !section.has("key") {
        section.complain_at("hash", "needs a key: key = { file = \"…\" }");
    }
    for (name, list) in [
        ("drop", &stage.drop),
        ("mask", &stage.mask),
        ("hash", &stage.hash),
        ("truncate_ip", &stage.truncate_ip),
    ] {
        for path in list.iter().filter(|path| !path.is_stored()) {
            section.complain_at(name, format!("{path} is the worker's own and cannot be changed"));
        }
    }
    Some(Arc::new(stage))
}

impl Stage for Anonymise {
    fn run(&self, event: &mut Event) -> Flow {
        let digits = &event.digits;
        let Some(fields) = &mut event.fields else {
            return Flow::Next;
        };
        for path in &self.drop {
            path.remove(fields);
        }
        for path in &self.mask {
            replace(path, fields, |_| Value::from(MASK));
        }
        if let Some(key) = &self.key {
            for path in &self.hash {
                replace(path, fields, |value| pseudonym(key, value, digits));
            }
        }
        for path in &self.truncate_ip {
            let network = path.get_mut(fields).map(|value| value.as_str().and_then(network_of));
            match network {
                Some(Some(text)) => replace(path, fields, |_| Value::from(text.clone())),
                Some(None) => drop(path.remove(fields)),
                None => {}
            }
        }
        Flow::Next
    }
}

fn replace(path: &FieldPath, fields: &mut Value, with: impl Fn(&Value) -> Value) {
    if let Some(value) = path.get_mut(fields).filter(|value| !value.is_null()) {
        *value = with(value);
    }
}

fn pseudonym(key: &[u8; KEY_BYTES], value: &Value, digits: &Digits) -> Value {
    let text = digits.scalar(value).map(|text| text.into_owned());
    let text = text.unwrap_or_else(|| json::to_string(value, digits).unwrap_or_default());
    let hex = blake3::keyed_hash(key, text.as_bytes()).to_hex();
    Value::from(&hex[..PSEUDONYM_HEX_DIGITS])
}

fn network_of(text: &str) -> Option<String> {
    let network = match text.trim().parse::<IpAddr>().ok()?.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::from(Ipv4Addr::new(a, b, c, 0))
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            IpAddr::from(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
        }
    };
    Some(network.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::config::value::FromText;
    use crate::event::EventId;
    use serde_json::json;

    fn paths(list: &[&str]) -> Vec<FieldPath> {
        list.iter().map(|text| FieldPath::from_text(text).unwrap()).collect()
    }

    fn run(stage: &Anonymise, fields: Value) -> Value {
        let mut event = Event::new(EventId::new(1, 1), Timestamp(0), "".into());
        event.fields = Some(fields);
        assert!(matches!(stage.run(&mut event), Flow::Next));
        event.fields.unwrap()
    }

    #[test]
    fn fields_are_dropped_masked_and_shortened() {
        let stage = Anonymise {
            drop: paths(&["author.phone", "gone"]),
            mask: paths(&["author.name", "author.age", "null"]),
            truncate_ip: paths(&["ip4", "ip6", "mapped", "bad", "none"]),
            ..Anonymise::default()
        };
        let out = run(
            &stage,
            json!({"author": {"phone": "1", "name": "Ann", "age": 5}, "null": null, "ip4": "192.0.2.77",
                "ip6": "2001:db8:1:2::3", "mapped": "::ffff:192.0.2.77", "bad": "home"}),
        );
        let expected = json!({"author": {"name": "***", "age": "***"}, "null": null, "ip4": "192.0.2.0",
            "ip6": "2001:db8:1::", "mapped": "192.0.2.0"});
        assert_eq!(out, expected);
    }

    #[test]
    fn a_pseudonym_is_stable_and_depends_on_the_key() {
        let with_key = |byte| Anonymise {
            hash: paths(&["id"]),
            key: Some([byte; 32]),
            ..Anonymise::default()
        };
        let one = run(&with_key(1), json!({"id": "3"}));
        assert_eq!(one, run(&with_key(1), json!({"id": 3})));
        assert_ne!(one, run(&with_key(2), json!({"id": "3"})));
        assert_ne!(one, run(&with_key(1), json!({"id": "4"})));
        assert_eq!(one["id"].as_str().unwrap().len(), PSEUDONYM_HEX_DIGITS);
    }
}
