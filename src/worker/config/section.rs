//! A typed reader over a TOML table that reports all mistakes.
//!
//! serde stops at the first error and has no line numbers for later ones. An operator wants the whole list at once, so
//! configuration structs are read field by field from a [`Section`]; every mistake goes to the shared [`Problems`] with
//! its line and full key, and so does every key that was never read.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::{self, ByteSize, FromText};
use crate::switch::Switch;

/// One mistake in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// Full dotted key, such as `source.posts.max_bytes`; empty for a syntax error.
    pub key: String,
    pub text: String,
}

/// A switch, and the position and key of its first use.
pub type Wanted = (Arc<Switch>, usize, String);

/// Collects every mistake of one file.
pub struct Problems {
    line_starts: Vec<usize>,
    list: RefCell<Vec<Problem>>,
    /// Switches in use, with the position of their first use.
    switches: RefCell<BTreeMap<String, Wanted>>,
}

impl Problems {
    pub fn new(text: &str) -> Self {
        let line_starts = std::iter::once(0)
            .chain(memchr::memchr_iter(b'\n', text.as_bytes()).map(|i| i + 1))
            .collect();
        Self {
            line_starts,
            list: RefCell::default(),
            switches: RefCell::default(),
        }
    }

    /// Records a mistake at a byte position of the file.
    pub fn add(&self, at: usize, key: impl Into<String>, text: impl Into<String>) {
        let line = self.line_starts.partition_point(|&start| start <= at);
        self.list.borrow_mut().push(Problem {
            line,
            key: key.into(),
            text: text.into(),
        });
    }

    /// The switches in use.
    pub fn switches(&self) -> Vec<Wanted> {
        self.switches.borrow().values().cloned().collect()
    }

    /// All mistakes in the order of the file.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut list = self.list.into_inner();
        list.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
        list
    }
}

/// One table of the file; records which of its keys were read.
pub struct Section<'a> {
    problems: &'a Problems,
    path: String,
    at: usize,
    table: &'a DeTable<'a>,
    known: RefCell<BTreeSet<&'static str>>,
    /// The keys are user-defined; none is unknown.
    is_open: Cell<bool>,
}

impl<'a> Section<'a> {
    pub fn root(problems: &'a Problems, table: &'a DeTable<'a>) -> Self {
        Self::new(problems, String::new(), 0, table)
    }

    fn new(problems: &'a Problems, path: String, at: usize, table: &'a DeTable<'a>) -> Self {
        Self {
            problems,
            path,
            at,
            table,
            known: RefCell::default(),
            is_open: Cell::new(false),
        }
    }

    /// Full dotted key of this table.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The last part of the key: the user-defined name.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or_default()
    }

    /// Reports a mistake of the whole table.
    pub fn complain(&self, text: impl Into<String>) {
        self.problems.add(self.at, self.path.clone(), text);
    }

    /// Reports a mistake of one of its keys.
    pub fn complain_at(&self, key: &str, text: impl Into<String>) {
        let at = self.find(key).map_or(self.at, |(key_at, _)| key_at);
        self.problems.add(at, self.key(key), text);
    }

    /// Reports a mistake of a value already read.
    pub fn complain_about<T>(&self, value: &Located<T>, text: impl Into<String>) {
        self.problems.add(value.at, value.key.clone(), text);
    }

    /// Byte position of the table in the file.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// An optional key. `None` also for a wrong value, which is recorded.
    pub fn optional<T: FromItem>(&self, key: &'static str) -> Option<T> {
        self.known.borrow_mut().insert(key);
        let (_, value) = self.find(key)?;
        T::from_item(&self.item(key, value))
    }

    /// A key with a default.
    pub fn or<T: FromItem>(&self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// A mandatory key.
    pub fn required<T: FromItem>(&self, key: &'static str) -> Option<T> {
        if !self.has(key) {
            self.known.borrow_mut().insert(key);
            self.problems.add(self.at, self.key(key), "is missing");
            return None;
        }
        self.optional(key)
    }

    /// A key whose value is one of a fixed set of words.
    pub fn choice<T: Copy>(&self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        let Some(word) = self.optional::<String>(key) else {
            return default;
        };
        match words.iter().find(|(name, _)| *name == word) {
            Some((_, choice)) => *choice,
            None => {
                let names: Vec<_> = words.iter().map(|(name, _)| format!("\"{name}\"")).collect();
                self.complain_at(key, format!("\"{word}\" is not one of {}", names.join(", ")));
                default
            }
        }
    }

    /// A key that names a switch; it must be defined somewhere in the file.
    pub fn switch(&self, key: &'static str) -> Option<Arc<Switch>> {
        let name: String = self.optional(key)?;
        let (at, _) = self.find(key)?;
        let mut switches = self.problems.switches.borrow_mut();
        let entry = switches.entry(name.clone());
        let (switch, ..) = entry.or_insert_with(|| (Switch::new(&name), at, self.key(key)));
        Some(Arc::clone(switch))
    }

    /// A table below this one, read by `read`, its unknown keys refused.
    pub fn table<T>(&self, key: &'static str, read: impl FnOnce(&Section<'a>) -> T) -> Option<T> {
        self.known.borrow_mut().insert(key);
        let (_, value) = self.find(key)?;
        let section = self.item(key, value).section()?;
        let out = read(&section);
        section.refuse_unknown();
        Some(out)
    }

    /// The tables below this one, with user-defined names.
    pub fn named_tables(&self) -> Vec<Section<'a>> {
        self.entries()
            .filter_map(|(name, item)| item.section_named(&name))
            .collect()
    }

    /// All entries of a table with user-defined keys.
    pub fn entries(&self) -> impl Iterator<Item = (String, Item<'a>)> + '_ {
        self.is_open.set(true);
        self.table.iter().map(|(key, value)| {
            let name = key.get_ref().to_string();
            let mut item = self.item(&name, value);
            item.at = key.span().start;
            (name, item)
        })
    }

    /// Records every key that was never read.
    pub fn refuse_unknown(&self) {
        if self.is_open.get() {
            return;
        }
        let known = self.known.borrow();
        for (key, _) in self.table.iter() {
            let name: &str = key.get_ref();
            if known.contains(name) {
                continue;
            }
            let text = match nearest(name, &known) {
                Some(meant) => format!("unknown key, did you mean \"{meant}\"?"),
                None => {
                    let all: Vec<_> = known.iter().copied().collect();
                    format!("unknown key; known here: {}", all.join(", "))
                }
            };
            self.problems.add(key.span().start, self.key(name), text);
        }
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn find(&self, key: &str) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
        let (name, value) = self.table.iter().find(|(name, _)| &**name.get_ref() == key)?;
        Some((name.span().start, value))
    }

    fn item(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Item<'a> {
        let Range { start, .. } = value.span();
        Item {
            problems: self.problems,
            path: self.key(key),
            at: start,
            value: value.get_ref(),
        }
    }
}

/// One value and its position.
pub struct Item<'a> {
    problems: &'a Problems,
    path: String,
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Item<'a> {
    pub fn complain(&self, text: impl Into<String>) {
        self.problems.add(self.at, self.path.clone(), text);
    }

    /// The value as an integer, if it is one.
    pub fn integer(&self) -> Option<usize> {
        match self.value {
            DeValue::Integer(number) => usize::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        }
    }

    /// The value as JSON; `None` if it holds a type without JSON equivalent, such as a date.
    pub fn to_json(&self) -> Option<serde_json::Value> {
        json_of(self.value)
    }

    pub fn is_list(&self) -> bool {
        self.value.as_array().is_some()
    }

    fn section(&self) -> Option<Section<'a>> {
        match self.value {
            DeValue::Table(table) => Some(Section::new(self.problems, self.path.clone(), self.at, table)),
            other => {
                self.complain(format!("must be a table, not {}", indefinite(other.type_str())));
                None
            }
        }
    }

    fn section_named(&self, name: &str) -> Option<Section<'a>> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            self.complain("a name may hold only letters, digits, \"_\" and \"-\"");
        }
        self.section()
    }

    /// The string after environment substitution.
    fn text(&self) -> Option<String> {
        let DeValue::String(raw) = self.value else { return None };
        match value::substitute(raw, |name| std::env::var(name).ok()) {
            Ok(text) => Some(text),
            Err(error) => {
                self.complain(error);
                Some(String::new())
            }
        }
    }

    fn wrong_type<T>(&self, wanted: &str) -> Option<T> {
        self.complain(format!("must be {wanted}, not {}", indefinite(self.value.type_str())));
        None
    }

    /// Reads a scalar that is written as a string.
    fn parsed<T>(&self, wanted: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let before = self.problems.list.borrow().len();
        let Some(text) = self.text() else {
            return self.wrong_type(wanted);
        };
        if self.problems.list.borrow().len() > before {
            return None;
        }
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.complain(error);
                None
            }
        }
    }
}

/// A type that can be read from a configuration file. Mistakes are recorded at the item, which then reads as `None`.
pub trait FromItem: Sized {
    fn from_item(item: &Item<'_>) -> Option<Self>;
}

impl FromItem for String {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        item.parsed("a string", |text| Ok(text.to_owned()))
    }
}

impl FromItem for PathBuf {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        item.parsed("a path", |text| {
            if text.is_empty() {
                Err("is empty".into())
            } else {
                Ok(text.into())
            }
        })
    }
}

impl FromItem for Duration {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        item.parsed("a duration such as \"50ms\"", value::duration)
    }
}

impl FromItem for ByteSize {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        item.parsed("a size such as \"32MiB\"", value::size)
    }
}

impl FromItem for std::net::SocketAddr {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        item.parsed("an address such as \"127.0.0.1:8081\"", |text| {
            let address: Self = text
                .parse()
                .map_err(|_| format!("\"{text}\" is not an address (example: \"127.0.0.1:8081\")"))?;
            match address.port() {
                0 => Err(format!("\"{text}\": there is no port 0")),
                _ => Ok(address),
            }
        })
    }
}

impl FromItem for bool {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        match item.value {
            DeValue::Boolean(value) => Some(*value),
            DeValue::String(_) => item.parsed("true or false", |text| {
                text.parse()
                    .map_err(|_| format!("must be true or false, not \"{text}\""))
            }),
            _ => item.wrong_type("true or false"),
        }
    }
}

impl FromItem for usize {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| format!("\"{text}\" is not a whole number from 0"))
        };
        match item.value {
            DeValue::Integer(number) => match usize::from_str_radix(number.as_str(), number.radix()) {
                Ok(value) => Some(value),
                Err(_) => {
                    item.complain(format!("{} is not a whole number from 0", number.as_str()));
                    None
                }
            },
            DeValue::String(_) => item.parsed("a whole number", parse),
            _ => item.wrong_type("a whole number"),
        }
    }
}

impl FromItem for u32 {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        let number = usize::from_item(item)?;
        let small = u32::try_from(number).ok();
        if small.is_none() {
            item.complain(format!("{number} is larger than {}", u32::MAX));
        }
        small
    }
}

impl FromItem for u16 {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        let number = usize::from_item(item)?;
        let small = u16::try_from(number).ok();
        if small.is_none() {
            item.complain(format!("{number} is larger than 65535"));
        }
        small
    }
}

impl<T: FromItem> FromItem for Vec<T> {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        let Some(array) = item.value.as_array() else {
            return item.wrong_type("a list");
        };
        let items = array.iter().enumerate().map(|(index, value)| {
            T::from_item(&Item {
                problems: item.problems,
                path: format!("{}[{index}]", item.path),
                at: value.span().start,
                value: value.get_ref(),
            })
        });
        // Collect first, so that every bad element is reported.
        items.collect::<Vec<_>>().into_iter().collect()
    }
}

/// A value with its position, for checks that need the whole file.
#[derive(Clone, Debug)]
pub struct Located<T> {
    pub value: T,
    pub at: usize,
    pub key: String,
}

impl<T: FromItem> FromItem for Located<T> {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        Some(Located {
            value: T::from_item(item)?,
            at: item.at,
            key: item.path.clone(),
        })
    }
}

impl<T: FromText> FromItem for T {
    fn from_item(item: &Item<'_>) -> Option<Self> {
        item.parsed(T::WANTED, T::from_text)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.line, self.text),
            key => write!(f, "{}: {key}: {}", self.line, self.text),
        }
    }
}

fn json_of(value: &DeValue<'_>) -> Option<serde_json::Value> {
    use serde_json::Value;
    Some(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => Value::from(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        DeValue::Float(number) => Value::from(number.as_str().parse::<f64>().ok()?),
        DeValue::Boolean(flag) => Value::from(*flag),
        DeValue::Datetime(_) => return None,
        DeValue::Array(list) => Value::Array(list.iter().map(|item| json_of(item.get_ref())).collect::<Option<_>>()?),
        DeValue::Table(table) => {
            let members = table
                .iter()
                .map(|(key, value)| Some((key.get_ref().to_string(), json_of(value.get_ref())?)));
            Value::Object(members.collect::<Option<_>>()?)
        }
    })
}

fn indefinite(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {kind}")
}

/// The known key at the smallest edit distance, if close enough for a typing mistake.
fn nearest<'k>(name: &str, known: &BTreeSet<&'k str>) -> Option<&'k str> {
    let allowed = 1 + name.len() / 4;
    known
        .iter()
        .map(|key| (edit_distance(name, key), *key))
        .filter(|(d, _)| *d <= allowed)
        .min()
        .map(|(_, key)| key)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str, read: impl FnOnce(&Section<'_>)) -> Vec<String> {
        let table = DeTable::parse(text).expect("valid TOML");
        let problems = Problems::new(text);
        let section = Section::root(&problems, table.get_ref());
        read(&section);
        section.refuse_unknown();
        problems.into_sorted().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_listed_with_its_line_and_key() {
        let text = "size = \"12 parsecs\"\nlist = [\"a\", 3,\n 4]\n\n[deep]\nwait = 7\n";
        let found = problems(text, |s| {
            s.optional::<ByteSize>("size");
            s.optional::<Vec<String>>("list");
            s.required::<String>("gone");
            s.table("deep", |deep| deep.optional::<Duration>("wait"));
        });
        assert_eq!(
            found,
            [
                "1: gone: is missing",
                "1: size: \"12 parsecs\" is not a size (examples: \"64KiB\", \"32MiB\", \"1000B\")",
                "2: list[1]: must be a string, not an integer",
                "3: list[2]: must be a string, not an integer",
                "6: deep.wait: must be a duration such as \"50ms\", not an integer",
            ]
        );
    }

    #[test]
    fn an_unknown_key_is_refused_and_a_near_one_suggested() {
        let found = problems("max_in_fligth = 3\nzzzzzzzz = 1\n", |s| {
            s.or("max_in_flight", 5_usize);
        });
        assert_eq!(
            found,
            [
                "1: max_in_fligth: unknown key, did you mean \"max_in_flight\"?",
                "2: zzzzzzzz: unknown key; known here: max_in_flight",
            ]
        );
    }

    #[test]
    fn numbers_and_booleans_may_come_from_a_string() {
        let found = problems("n = \"12\"\nb = \"true\"\nbad = \"x\"\n", |s| {
            assert_eq!(s.optional::<usize>("n"), Some(12));
            assert_eq!(s.optional::<bool>("b"), Some(true));
            assert_eq!(s.optional::<usize>("bad"), None);
        });
        assert_eq!(found, ["3: bad: \"x\" is not a whole number from 0"]);
    }

    #[test]
    fn a_choice_names_all_the_words() {
        let found = problems("start = \"middle\"\n", |s| {
            s.choice("start", &[("beginning", 1), ("end", 2)], 1);
        });
        assert_eq!(found, ["1: start: \"middle\" is not one of \"beginning\", \"end\""]);
    }
}
