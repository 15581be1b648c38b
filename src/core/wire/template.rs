//! Message templates.

use super::escape::Escape;

/// The values of a template's tokens.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// Message id; -1 ping, -2 deletion notice, -3 long polling time-out.
    pub id: i64,
    pub channel: &'a [u8],
    pub text: &'a [u8],
    /// Publish time, seconds since the epoch; 0 if it is not a message.
    pub time: u64,
    pub tag: u32,
    pub event_id: Option<&'a [u8]>,
    pub event_type: Option<&'a [u8]>,
}

/// A parsed template: literals and tokens. Parsed once, at configuration.
///
/// Two templates are equal if they render equally, so a template is the key of frames that are rendered once and
/// shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    parts: Vec<Part>,
    escapes_text: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Literal(Vec<u8>),
    Token(Token),
    Escaped(Token, Escape),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Token {
    Id,
    Text,
    Size,
    Channel,
    Time,
    Tag,
    EventId,
    EventType,
}

/// The tokens' names as written in a configuration, in any case.
const TOKENS: [(&[u8], Token); 8] = [
    (b"id", Token::Id),
    (b"text", Token::Text),
    (b"size", Token::Size),
    (b"channel", Token::Channel),
    (b"time", Token::Time),
    (b"tag", Token::Tag),
    (b"event-id", Token::EventId),
    (b"event-type", Token::EventType),
];

impl Template {
    /// Unknown `~words~` and single tildes are literal text.
    pub fn parse(source: &[u8]) -> Template {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut rest = source;
        while let [first, tail @ ..] = rest {
            match token_at_start(rest) {
                Some((part, after)) => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(part);
                    rest = after;
                }
                None => {
                    literal.push(*first);
                    rest = tail;
                }
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        let has = |wanted: fn(&Part) -> bool| parts.iter().any(wanted);
        let escapes_text = has(|part| matches!(part, Part::Escaped(Token::Text, _)))
            && !has(|part| matches!(part, Part::Token(Token::Text)));
        Template { parts, escapes_text }
    }

    /// Appends the formatted message. Substituted text is not scanned for tokens.
    pub fn render(&self, fields: &Fields<'_>, out: &mut Vec<u8>) {
        self.render_each(fields, fields, out);
    }

    /// The same; channel, event id and event type come from other fields where they are escaped.
    pub fn render_each(&self, fields: &Fields<'_>, escaped: &Fields<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Token(token) => token.render(fields, out),
                Part::Escaped(Token::Text, escape) => escape.push(fields.text, out),
                Part::Escaped(token, escape) => escape.push(token.text(escaped).unwrap_or_default(), out),
            }
        }
    }

    /// Does the text appear, and everywhere escaped? Then no line of it ends.
    pub fn escapes_text(&self) -> bool {
        self.escapes_text
    }
}

/// A word of a template whose modifier is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misused<'t> {
    #[error("unknown modifier in {}, accepted values (json, html, base64)", .0.escape_ascii())]
    UnknownModifier(&'t [u8]),
    #[error("{} takes no modifier", .0.escape_ascii())]
    TakesNone(&'t [u8]),
}

/// The first word of a template with a modifier that it cannot have.
pub fn misused(source: &[u8]) -> Option<Misused<'_>> {
    let mut rest = source;
    while let Some(start) = memchr::memchr(b'~', rest) {
        let text = &rest[start..];
        if let Some((_, after)) = token_at_start(text) {
            rest = after;
            continue;
        }
        if let Some((token, behind)) = name_at_start(&text[1..])
            && let Some(behind) = behind.strip_prefix(b":")
            && let Some((_, after)) = word_at_start(behind)
        {
            let word = &text[..text.len() - after.len()];
            return Some(match token.is_text() {
                true => Misused::UnknownModifier(word),
                false => Misused::TakesNone(word),
            });
        }
        rest = &text[1..];
    }
    None
}

/// The `~words~` of a template that are not tokens: probably mistyped, and sent as they are.
pub fn unknown_words(source: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = source;
    std::iter::from_fn(move || {
        while let Some(start) = memchr::memchr(b'~', rest) {
            let text = &rest[start..];
            if let Some((_, after)) = token_at_start(text) {
                rest = after;
                continue;
            }
            let letters = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':');
            let len = 1 + text[1..]
                .iter()
                .position(|byte| !letters(byte))
                .unwrap_or(text.len() - 1);
            rest = &text[len..];
            // The second tilde may be the first of a token.
            let ends = rest.first() == Some(&b'~') && token_at_start(rest).is_none();
            if ends && text.get(1).is_some_and(u8::is_ascii_alphabetic) {
                rest = &rest[1..];
                return Some(&text[..=len]);
            }
        }
        None
    })
}

/// The tokens in a text, as written.
pub fn tokens(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..text.len()).filter_map(|start| {
        let (_, after) = token_at_start(&text[start..])?;
        Some(&text[start..text.len() - after.len()])
    })
}

/// The token that a text begins with, and what comes behind it.
fn token_at_start(text: &[u8]) -> Option<(Part, &[u8])> {
    let (token, behind) = name_at_start(text.strip_prefix(b"~")?)?;
    if let Some(after) = behind.strip_prefix(b"~") {
        return Some((Part::Token(token), after));
    }
    let (modifier, after) = word_at_start(behind.strip_prefix(b":")?)?;
    let (_, escape) = Escape::ALL
        .into_iter()
        .find(|(name, _)| modifier.eq_ignore_ascii_case(name.as_bytes()))?;
    token.is_text().then_some((Part::Escaped(token, escape), after))
}

/// The token whose name a text begins with, and what comes behind it: the end of the word, or a modifier.
fn name_at_start(text: &[u8]) -> Option<(Token, &[u8])> {
    TOKENS.into_iter().find_map(|(name, token)| {
        let (start, behind) = text.split_at_checked(name.len())?;
        (start.eq_ignore_ascii_case(name) && matches!(behind.first(), Some(b'~' | b':'))).then_some((token, behind))
    })
}

/// The word up to a tilde, and what comes behind that.
fn word_at_start(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text
        .iter()
        .position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')))?;
    (end > 0 && text[end] == b'~').then(|| (&text[..end], &text[end + 1..]))
}

impl Token {
    fn render(self, fields: &Fields<'_>, out: &mut Vec<u8>) {
        match self {
            Token::Id => super::push_signed(fields.id, out),
            Token::Size => super::push_number(fields.text.len() as u64, out),
            Token::Time => out.extend_from_slice(&super::http_date::format(fields.time)),
            Token::Tag => super::push_number(fields.tag.into(), out),
            Token::Text => out.extend_from_slice(fields.text),
            Token::Channel => out.extend_from_slice(fields.channel),
            Token::EventId => out.extend_from_slice(fields.event_id.unwrap_or_default()),
            Token::EventType => out.extend_from_slice(fields.event_type.unwrap_or_default()),
        }
    }

    /// What a publisher or a subscriber has chosen; none for figures, and for a field that a message does not have.
    fn text<'a>(self, fields: &Fields<'a>) -> Option<&'a [u8]> {
        match self {
            Token::Text => Some(fields.text),
            Token::Channel => Some(fields.channel),
            Token::EventId => fields.event_id,
            Token::EventType => fields.event_type,
            Token::Id | Token::Size | Token::Time | Token::Tag => None,
        }
    }

    fn is_text(self) -> bool {
        matches!(self, Token::Text | Token::Channel | Token::EventId | Token::EventType)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: Fields<'_> = Fields {
        id: 3,
        channel: b"news",
        text: b"hello",
        time: 1_795_325_070,
        tag: 2,
        event_id: Some(b"e7"),
        event_type: Some(b"note"),
    };

    fn rendered(template: &str, fields: &Fields<'_>) -> String {
        let mut out = Vec::new();
        Template::parse(template.as_bytes()).render(fields, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_token_has_its_value() {
        assert_eq!(
            rendered(
                "~id~|~text~|~size~|~channel~|~time~|~tag~|~event-id~|~event-type~",
                &MESSAGE
            ),
            "3|hello|5|news|Sun, 22 Nov 2026 05:24:30 GMT|2|e7|note"
        );
    }

    #[test]
    fn case_does_not_matter() {
        assert_eq!(rendered("~ID~ ~Text~ ~EVENT-id~", &MESSAGE), "3 hello e7");
    }

    #[test]
    fn a_ping_has_no_channel_no_time_and_a_negative_id() {
        let ping = Fields {
            id: -1,
            channel: b"",
            text: b" ",
            time: 0,
            tag: 0,
            event_id: None,
            event_type: None,
        };
        assert_eq!(
            rendered("~id~:~text~|~channel~|~time~|~tag~|~event-id~|~event-type~", &ping),
            "-1: ||Thu, 01 Jan 1970 00:00:00 GMT|0||"
        );
        assert_eq!(rendered("~id~", &Fields { id: i64::MIN, ..ping }), i64::MIN.to_string());
    }

    #[test]
    fn words_that_are_no_tokens_are_found() {
        let unknown = |source: &'static str| {
            let words: Vec<_> = unknown_words(source.as_bytes()).collect();
            String::from_utf8(words.join(&b' ')).unwrap()
        };
        assert_eq!(
            unknown("~id~ ~txt~ ~TEXT~~eventid~ ~event_type~"),
            "~txt~ ~eventid~ ~event_type~"
        );
        assert_eq!(unknown("~a~text~ ~~ ~ ~ a~b ~5~ ~text~channel~ ~- ~"), "");
        assert_eq!(unknown("~a~b~"), "~a~");
        assert_eq!(unknown("~"), "");
        let known: Vec<_> = tokens(b"~id~~Text~ ~txt~").collect();
        assert_eq!(known, [&b"~id~"[..], b"~Text~"]);
    }

    #[test]
    fn modifiers_escape() {
        let fields = Fields {
            channel: b"a\"b\n",
            text: b"<i>\"\\\n",
            event_id: Some(b"<7>"),
            event_type: None,
            ..MESSAGE
        };
        assert_eq!(
            rendered("~text:json~|~TEXT:Html~|~text:base64~|~text~", &fields),
            "\\u003ci>\\\"\\\\\\n|&lt;i&gt;&quot;\\&#10;|PGk+IlwK|<i>\"\\\n"
        );
        assert_eq!(
            rendered(
                "~channel:json~|~event-id:html~|~event-id:base64~|~event-type:json~",
                &fields
            ),
            "a\\\"b\\n|&lt;7&gt;|PDc+|"
        );
    }

    #[test]
    fn a_modifier_that_is_none_is_found() {
        for (source, word, known_token) in [
            ("a ~text:jsn~ b", "~text:jsn~", true),
            ("~text~~Event-ID:json5~", "~Event-ID:json5~", true),
            ("~id:json~", "~id:json~", false),
            ("~~size:html~", "~size:html~", false),
        ] {
            let expected = match known_token {
                true => Misused::UnknownModifier(word.as_bytes()),
                false => Misused::TakesNone(word.as_bytes()),
            };
            assert_eq!(misused(source.as_bytes()), Some(expected), "{source}");
            assert!(expected.to_string().contains(word));
        }
        for source in [
            "~text:json~",
            "~text:~",
            "~text: json~",
            "~text:~id~",
            "~nope:json~",
            "~text:json",
            "~",
            "text:x~",
        ] {
            assert_eq!(misused(source.as_bytes()), None, "{source}");
        }
        let unknown: Vec<_> = unknown_words(b"~txt:json~ ~text:json~ ~12:30~").collect();
        assert_eq!(unknown, [b"~txt:json~"]);
        let known: Vec<_> = tokens(b"~text:html~~id~").collect();
        assert_eq!(known, [&b"~text:html~"[..], b"~id~"]);
    }

    #[test]
    fn a_text_is_escaped_if_it_is_nowhere_as_it_stands() {
        for (source, expected) in [
            ("~text:json~", true),
            ("~text:json~ ~text:html~", true),
            ("~text:json~ ~text~", false),
            ("~channel:json~", false),
            ("", false),
        ] {
            assert_eq!(Template::parse(source.as_bytes()).escapes_text(), expected, "{source}");
        }
    }

    #[test]
    fn tokens_repeat_and_touch() {
        assert_eq!(rendered("~id~~id~~text~~text~", &MESSAGE), "33hellohello");
    }

    #[test]
    fn unknown_words_and_lone_tildes_stay() {
        assert_eq!(
            rendered("~ ~~ ~nope~ ~id ~~id~~ ~~~ ~event~", &MESSAGE),
            "~ ~~ ~nope~ ~id ~3~ ~~~ ~event~"
        );
        assert_eq!(rendered("~id~text~", &MESSAGE), "3text~");
    }

    #[test]
    fn tokens_in_what_is_substituted_are_plain_text() {
        let fields = Fields {
            channel: b"~text~",
            text: b"~id~ ~channel~",
            event_id: Some(b"~tag~"),
            ..MESSAGE
        };
        assert_eq!(
            rendered("~channel~|~text~|~event-id~", &fields),
            "~text~|~id~ ~channel~|~tag~"
        );
    }

    #[test]
    fn templates_that_render_equally_are_equal() {
        assert_eq!(Template::parse(b"a~ID~b"), Template::parse(b"a~id~b"));
        assert_ne!(Template::parse(b"a~id~b"), Template::parse(b"a~tag~b"));
    }

    #[test]
    fn a_text_full_of_tokens_is_only_copied() {
        let text = b"~text~ ~id~ ~channel~ and some more words ".repeat(20_000);
        let fields = Fields { text: &text, ..MESSAGE };
        let mut out = Vec::new();
        Template::parse(b"~id~ ~channel~ ~text~ ~tag~ ~time~").render(&fields, &mut out);
        assert!(out.len() > text.len() && out.len() < text.len() + 100);
    }

    proptest! {
        #[test]
        fn a_template_without_tildes_is_sent_as_it_stands(source in "[^~]*") {
            prop_assert_eq!(rendered(&source, &MESSAGE), source);
        }

        #[test]
        fn the_length_of_any_template_is_that_of_its_parts(
            parts in prop::collection::vec(prop::sample::select(&["~text~", "~size~", "~", "x", "~id~"][..]), 0..20),
            text: Vec<u8>,
        ) {
            // Separated, so that no token spans two parts.
            let source = parts.join("|");
            let mut out = Vec::new();
            Template::parse(source.as_bytes()).render(&Fields { text: &text, ..MESSAGE }, &mut out);
            let expected: usize = parts
                .iter()
                .map(|part| match *part {
                    "~text~" => text.len(),
                    "~size~" => text.len().to_string().len(),
                    _ => 1,
                })
                .sum();
            prop_assert_eq!(out.len(), expected + parts.len().saturating_sub(1));
        }
    }
}
