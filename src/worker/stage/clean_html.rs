//! `clean_html`: makes user text safe for insertion into a page as HTML.
//!
//! ```toml
//! clean = { type = "clean_html", fields = ["message"], allow = ["a", "b", "i", "em", "strong", "code", "br", "p"] }
//! names = { type = "clean_html", fields = ["author"], allow = [] }
//! ```
//!
//! The result is an HTML fragment: text stays text, allowed markup stays, everything else is removed. It is not safe
//! inside an attribute. A field that is missing or not a string is left as it is: a number cannot carry markup.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::{Flow, Kind, Stage};
use crate::config::section::Section;
use crate::event::Event;
use crate::field::FieldPath;

pub const KIND: Kind = Kind {
    name: "clean_html",
    about: "removes all but the allowed HTML from text fields",
    read,
};

/// Default of `allow`.
const DEFAULT_TAGS: &[&str] = &["a", "b", "i", "em", "strong", "blockquote", "code", "br", "p"];

/// Ammonia requires that no tag is both allowed and emptied.
const EMPTIED_TAGS: &[&str] = &["script", "style"];

pub struct CleanHtml {
    /// Fields to clean.
    fields: Vec<FieldPath>,
    cleaner: ammonia::Builder<'static>,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let fields = section.required::<Vec<FieldPath>>("fields");
    let allow = section.optional::<Vec<String>>("allow");
    for tag in allow.iter().flatten() {
        if EMPTIED_TAGS.contains(&tag.as_str()) {
            section.complain_at("allow", format!("\"{tag}\" can never be allowed"));
        } else if tag.is_empty() || !tag.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            section.complain_at("allow", format!("\"{tag}\" is not a tag name (example: \"strong\")"));
        }
    }
    let allow = allow.unwrap_or_else(|| DEFAULT_TAGS.iter().map(ToString::to_string).collect());
    if allow.iter().any(|tag| EMPTIED_TAGS.contains(&tag.as_str())) {
        return None;
    }
    Some(Arc::new(CleanHtml::new(fields?, allow)))
}

impl CleanHtml {
    pub fn new(fields: Vec<FieldPath>, allow: Vec<String>) -> Self {
        let tags: HashSet<&'static str> = allow.into_iter().map(interned).collect();
        let mut cleaner = ammonia::Builder::default();
        cleaner
            .tags(tags)
            .url_schemes(HashSet::from(["http", "https", "mailto"]))
            .url_relative(ammonia::UrlRelative::Deny)
            .link_rel(Some("noopener noreferrer nofollow ugc"));
        Self { fields, cleaner }
    }
}

/// A static copy, created once per process, however often the configuration is read.
fn interned(tag: String) -> &'static str {
    static ALL: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut all = ALL.lock();
    if let Some(known) = all.get(tag.as_str()) {
        return known;
    }
    let tag: &'static str = tag.leak();
    all.insert(tag);
    tag
}

impl Stage for CleanHtml {
    fn run(&self, event: &mut Event) -> Flow {
        let Some(fields) = &mut event.fields else {
            return Flow::Next;
        };
        for path in &self.fields {
            if let Some(Value::String(text)) = path.get_mut(fields)
                && memchr::memchr3(b'<', b'&', 0, text.as_bytes()).is_some()
            {
                *text = self.cleaner.clean(text).to_string();
            }
        }
        Flow::Next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::config::value::FromText;
    use crate::event::EventId;
    use serde_json::json;

    fn clean(allow: &[&str], text: &str) -> String {
        let path = FieldPath::from_text("message").unwrap();
        let stage = CleanHtml::new(vec![path], allow.iter().map(ToString::to_string).collect());
        let mut event = Event::new(EventId::new(1, 1), Timestamp(0), "".into());
        event.fields = Some(json!({"message": text}));
        assert!(matches!(stage.run(&mut event), Flow::Next));
        event.fields.unwrap()["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn scripts_and_handlers_go_and_allowed_markup_stays() {
        assert_eq!(
            clean(DEFAULT_TAGS, "<script>x</script>hi <b onclick=x>you</b>"),
            "hi <b>you</b>"
        );
        assert_eq!(clean(DEFAULT_TAGS, "<img src=x onerror=alert(1)>a"), "a");
        assert_eq!(
            clean(DEFAULT_TAGS, "<a href='javascript:x'>a</a>"),
            r#"<a rel="noopener noreferrer nofollow ugc">a</a>"#
        );
        assert_eq!(clean(&[], "<b>bold</b> & <i>so"), "bold &amp; so");
    }

    #[test]
    fn plain_text_is_not_touched() {
        for text in ["a > b \"quoted\" 'so' é", ""] {
            assert_eq!(clean(DEFAULT_TAGS, text), text);
        }
    }

    #[test]
    fn cleaning_twice_changes_nothing_more() {
        for text in ["<b>a<", "&lt;script&gt;", "a &amp; b", "<<b>>x", "\0<p>"] {
            let once = clean(DEFAULT_TAGS, text);
            assert_eq!(clean(DEFAULT_TAGS, &once), once, "{text}");
        }
    }

    #[test]
    fn missing_fields_and_other_types_are_left_alone() {
        let stage = CleanHtml::new(vec![FieldPath::from_text("a.b").unwrap()], vec![]);
        for fields in [json!({}), json!({"a": {"b": 7}}), json!({"a": "<b>"})] {
            let mut event = Event::new(EventId::new(1, 1), Timestamp(0), "".into());
            event.fields = Some(fields.clone());
            assert!(matches!(stage.run(&mut event), Flow::Next));
            assert_eq!(event.fields, Some(fields));
        }
    }
}
