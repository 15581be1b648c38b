//! Channel information and statistics in JSON, plain, YAML and XML, always well-formed, for ids of any bytes.
//!
//! Ids that need no escaping are written as in the C module. Where text must be Unicode, bytes that are not valid UTF-8
//! become U+FFFD. `plain` has no escaping and carries the bytes as they are.

use super::{http_date, push_number};

/// The format of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Plain,
    Json,
    Yaml,
    Xml,
}

/// One channel.
#[derive(Clone, Copy, Debug)]
pub struct Channel<'a> {
    pub id: &'a [u8],
    pub published: u64,
    pub stored: u64,
    pub subscribers: u64,
}

/// The head of a group of channels.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    pub hostname: &'a [u8],
    /// Seconds since the epoch.
    pub time: u64,
    pub channels: u64,
    pub wildcard_channels: u64,
    /// Seconds since the zone was created.
    pub uptime: u64,
}

/// The figures of the whole zone.
#[derive(Clone, Copy, Debug)]
pub struct Summary<'a> {
    pub hostname: &'a [u8],
    /// Seconds since the epoch.
    pub time: u64,
    pub channels: u64,
    pub wildcard_channels: u64,
    pub published: u64,
    pub stored: u64,
    pub messages_in_trash: u64,
    pub channels_in_delete: u64,
    pub channels_in_trash: u64,
    pub subscribers: u64,
    /// Seconds since the zone was created.
    pub uptime: u64,
    pub workers: &'a [Worker],
}

/// One nginx worker.
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    pub pid: u32,
    pub subscribers: u64,
    /// Seconds since the worker started.
    pub uptime: u64,
}

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Plain => "text/plain",
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Xml => "application/xml",
        }
    }
}

/// The words of an Accept header, each with its format and content type.
const CONTENT_TYPES: [(&[u8], Format, &str); 6] = [
    (b"plain", Format::Plain, "text/plain"),
    (b"json", Format::Json, "application/json"),
    (b"yaml", Format::Yaml, "application/yaml"),
    (b"xml", Format::Xml, "application/xml"),
    (b"x-json", Format::Json, "text/x-json"),
    (b"x-yaml", Format::Yaml, "text/x-yaml"),
];

/// Chooses format and content type from an Accept header: by the first known word behind a slash. The text before the
/// slash and behind the word is ignored, and so are q-values.
pub fn negotiate(accept: Option<&[u8]>) -> (Format, &'static str) {
    chosen(accept).unwrap_or((Format::Json, Format::Json.content_type()))
}

/// The word that chooses OpenMetrics, for answers available in it.
const OPENMETRICS: &[u8] = b"openmetrics-text";

/// Does the header name OpenMetrics before any of the other formats? Same rule as for [`negotiate`].
pub fn prefers_openmetrics(accept: Option<&[u8]>) -> bool {
    subtypes(accept)
        .find(|subtype| subtype.starts_with(OPENMETRICS) || known(subtype).is_some())
        .is_some_and(|subtype| subtype.starts_with(OPENMETRICS))
}

fn chosen(accept: Option<&[u8]>) -> Option<(Format, &'static str)> {
    subtypes(accept).find_map(known)
}

/// The text behind each slash.
fn subtypes(accept: Option<&[u8]>) -> impl Iterator<Item = &[u8]> {
    let accept = accept.unwrap_or_default();
    memchr::memchr_iter(b'/', accept).map(|slash| &accept[slash + 1..])
}

fn known(subtype: &[u8]) -> Option<(Format, &'static str)> {
    let (_, format, content_type) = CONTENT_TYPES.iter().find(|(word, ..)| subtype.starts_with(word))?;
    Some((*format, content_type))
}

/// One channel alone.
pub fn channel(format: Format, channel: &Channel<'_>, out: &mut Vec<u8>) {
    push_declaration(format, out);
    push_channel(format, channel, out);
    out.extend_from_slice(match format {
        Format::Xml => b"\r\n\r\n",
        _ => b"\r\n",
    });
}

/// The text of an event in the events channel.
pub fn channel_event(event: &str, id: &[u8]) -> Vec<u8> {
    let mut out = b"{".to_vec();
    Record::new(Format::Json, "", ", ", &mut out)
        .text("type", event.as_bytes())
        .text("channel", id);
    out.push(b'}');
    out
}

/// Writes a group piece by piece, so that a million channels are never in memory as one list.
#[derive(Debug)]
pub struct GroupWriter {
    format: Format,
    empty: bool,
}

impl GroupWriter {
    pub fn start(format: Format, group: &Group<'_>, out: &mut Vec<u8>) -> GroupWriter {
        push_declaration(format, out);
        let (before, indent, join, after): (&[u8], _, _, &[u8]) = match format {
            Format::Plain => (b"", "", ", ", b", infos: \r\n"),
            Format::Json => (b"{", "", ", ", b", \"infos\": [\r\n"),
            Format::Yaml => (b"", "", "\r\n", b"\r\ninfos: \r\n"),
            Format::Xml => (b"<root>\r\n", "  ", "\r\n", b"\r\n  <infos>\r\n"),
        };
        out.extend_from_slice(before);
        Record::new(format, indent, join, out)
            .text("hostname", group.hostname)
            .text("time", &http_date::format_iso(group.time))
            .number("channels", group.channels)
            .number("wildcard_channels", group.wildcard_channels)
            .number("uptime", group.uptime);
        out.extend_from_slice(after);
        GroupWriter { format, empty: true }
    }

    pub fn channel(&mut self, channel: &Channel<'_>, out: &mut Vec<u8>) {
        if !self.empty {
            out.extend_from_slice(match self.format {
                Format::Plain | Format::Json => b",\r\n",
                Format::Yaml | Format::Xml => b"\r\n",
            });
        }
        self.empty = false;
        if self.format == Format::Yaml {
            out.extend_from_slice(b" -\r\n");
        }
        push_channel(self.format, channel, out);
    }

    pub fn finish(self, out: &mut Vec<u8>) {
        let (of_empty, of_list): (&[u8], &[u8]) = match self.format {
            Format::Plain | Format::Yaml => (b"\r\n", b"\r\n"),
            Format::Json => (b"]}\r\n", b"\r\n]}\r\n"),
            Format::Xml => (b"  </infos>\r\n</root>\r\n", b"\r\n  </infos>\r\n</root>\r\n"),
        };
        out.extend_from_slice(if self.empty { of_empty } else { of_list });
    }
}

/// The summary.
pub fn summary(format: Format, summary: &Summary<'_>, out: &mut Vec<u8>) {
    push_declaration(format, out);
    let (before, indent, join, after): (&[u8], _, _, &[u8]) = match format {
        Format::Plain => (b"", "", "\r\n", b"\r\nby_worker:\r\n"),
        Format::Json => (b"{", "", ", ", b", \"by_worker\": [\r\n"),
        Format::Yaml => (b"", "  ", "\r\n", b"\r\n  by_worker:\r\n"),
        Format::Xml => (b"<infos>\r\n", "  ", "\r\n", b"\r\n  <by_worker>"),
    };
    out.extend_from_slice(before);
    Record::new(format, indent, join, out)
        .text("hostname", summary.hostname)
        .text("time", &http_date::format_iso(summary.time))
        .number("channels", summary.channels)
        .number("wildcard_channels", summary.wildcard_channels)
        .number("published_messages", summary.published)
        .number("stored_messages", summary.stored)
        .number("messages_in_trash", summary.messages_in_trash)
        .number("channels_in_delete", summary.channels_in_delete)
        .number("channels_in_trash", summary.channels_in_trash)
        .number("subscribers", summary.subscribers)
        .number("uptime", summary.uptime);
    out.extend_from_slice(after);
    push_workers(format, summary.workers, out);
}

fn push_workers(format: Format, workers: &[Worker], out: &mut Vec<u8>) {
    let (before, indent, join, after, between): (&[u8], _, _, &[u8], &[u8]) = match format {
        Format::Plain => (b"", "  ", "\r\n", b"", b",\r\n"),
        Format::Json => (b"{", "", ", ", b"}", b",\r\n"),
        Format::Yaml => (b"   -\r\n", "    ", "\r\n", b"", b"\r\n"),
        Format::Xml => (b"<worker>\r\n", "  ", "\r\n", b"\r\n</worker>", b"\r\n"),
    };
    for (index, worker) in workers.iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(between);
        }
        out.extend_from_slice(before);
        let mut record = Record::new(format, indent, join, out);
        match format {
            // A string for compatibility: clients expect one.
            Format::Json => record.text("pid", worker.pid.to_string().as_bytes()),
            _ => record.number("pid", worker.pid.into()),
        };
        record
            .number("subscribers", worker.subscribers)
            .number("uptime", worker.uptime);
        out.extend_from_slice(after);
    }
    if !workers.is_empty() || format == Format::Plain {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(match format {
        Format::Plain | Format::Yaml => b"",
        Format::Json => b"]}\r\n",
        Format::Xml => b"</by_worker>\r\n</infos>\r\n",
    });
}

/// Appends the figures of a channel, without the delimiter behind the last one.
fn push_channel(format: Format, channel: &Channel<'_>, out: &mut Vec<u8>) {
    let (before, indent, join, after): (&[u8], _, _, &[u8]) = match format {
        Format::Plain => (b"", "", "\r\n", b""),
        Format::Json => (b"{", "", ", ", b"}"),
        Format::Yaml => (b"", "  ", "\r\n", b""),
        Format::Xml => (b"<channel>\r\n", "  ", "\r\n", b"\r\n</channel>"),
    };
    let id = match format {
        Format::Xml => "name",
        _ => "channel",
    };
    let subscribers = match format {
        Format::Plain => "active_subscribers",
        _ => "subscribers",
    };
    out.extend_from_slice(before);
    Record::new(format, indent, join, out).channel(id, subscribers, channel);
    out.extend_from_slice(after);
}

fn push_declaration(format: Format, out: &mut Vec<u8>) {
    if format == Format::Xml {
        out.extend_from_slice(b"<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\r\n");
    }
}

/// A series of names and values, with separators.
pub(super) struct Record<'a> {
    format: Format,
    indent: &'static str,
    join: &'static str,
    first: bool,
    out: &'a mut Vec<u8>,
}

impl Record<'_> {
    pub(super) fn new<'a>(
        format: Format,
        indent: &'static str,
        join: &'static str,
        out: &'a mut Vec<u8>,
    ) -> Record<'a> {
        Record {
            format,
            indent,
            join,
            first: true,
            out,
        }
    }

    pub(super) fn number(&mut self, name: &str, number: u64) -> &mut Self {
        self.field(name, |_, out| push_number(number, out))
    }

    pub(super) fn text(&mut self, name: &str, text: &[u8]) -> &mut Self {
        self.field(name, |format, out| match format {
            Format::Plain => out.extend_from_slice(text),
            Format::Json => push_quoted(text, is_escaped_in_json, out),
            Format::Yaml if is_plain_yaml(text) => out.extend_from_slice(text),
            Format::Yaml => push_quoted(text, is_escaped_in_yaml, out),
            Format::Xml => push_xml(text, out),
        })
    }

    /// A channel's figures, its id and its subscribers under these names.
    pub(super) fn channel(&mut self, id: &str, subscribers: &str, channel: &Channel<'_>) -> &mut Self {
        self.text(id, channel.id)
            .number("published_messages", channel.published)
            .number("stored_messages", channel.stored)
            .number(subscribers, channel.subscribers)
    }

    /// JSON only: a list of records, each with the fields that `each` gives it.
    pub(super) fn list<T>(&mut self, name: &str, items: &[T], each: impl Fn(&T, &mut Record<'_>)) -> &mut Self {
        self.field(name, |format, out| {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                out.extend_from_slice(if index == 0 { b"{" } else { b", {" });
                each(item, &mut Record::new(format, "", ", ", out));
                out.push(b'}');
            }
            out.push(b']');
        })
    }

    fn field(&mut self, name: &str, value: impl FnOnce(Format, &mut Vec<u8>)) -> &mut Self {
        if !self.first {
            self.out.extend_from_slice(self.join.as_bytes());
        }
        self.first = false;
        self.out.extend_from_slice(self.indent.as_bytes());
        let (before, between, after): (&[u8], &[u8], _) = match self.format {
            Format::Plain | Format::Yaml => (b"", b": ", false),
            Format::Json => (b"\"", b"\": ", false),
            Format::Xml => (b"<", b">", true),
        };
        self.out.extend_from_slice(before);
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(between);
        value(self.format, self.out);
        if after {
            self.out.extend_from_slice(b"</");
            self.out.extend_from_slice(name.as_bytes());
            self.out.push(b'>');
        }
        self
    }
}

/// The characters of a text; each invalid UTF-8 sequence is one U+FFFD.
fn characters(text: &[u8]) -> impl Iterator<Item = char> {
    text.utf8_chunks().flat_map(|chunk| {
        let lost = (!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER);
        chunk.valid().chars().chain(lost)
    })
}

/// Appends a JSON string.
pub(super) fn push_json_string(text: &[u8], out: &mut Vec<u8>) {
    push_quoted(text, is_escaped_in_json, out);
}

/// Appends a string for JSON, or for YAML, whose double-quoted scalars have the same escapes.
fn push_quoted(text: &[u8], is_escaped: fn(char) -> bool, out: &mut Vec<u8>) {
    out.push(b'"');
    for character in characters(text) {
        match character {
            '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            // All of them are in the basic plane: four digits are enough.
            _ if is_escaped(character) => out.extend_from_slice(format!("\\u{:04X}", character as u32).as_bytes()),
            _ => push_character(character, out),
        }
    }
    out.push(b'"');
}

/// Control characters, as required by RFC 8259 §7; line separators, because JavaScript once treated them as line ends.
fn is_escaped_in_json(character: char) -> bool {
    matches!(character, '\0'..='\x1f' | '\u{2028}' | '\u{2029}')
}

/// Characters that YAML 1.2.2 §5.1 does not count as printable, or that YAML 1.1 treated as a line end or a mark.
fn is_escaped_in_yaml(character: char) -> bool {
    matches!(
        character,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
    )
}

/// Does a YAML reader get exactly this text from it without quotes? (YAML 1.2.2 §7.3.3.) Whether the reader then
/// converts it to a number or to `null` is not decided here: it always could.
fn is_plain_yaml(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else { return false };
    let begins_otherwise = text.starts_with([
        ' ', ',', '[', ']', '{', '}', '#', '&', '*', '!', '|', '>', '\'', '"', '%', '@', '`',
    ]);
    let mark = text.strip_prefix(['-', '?', ':']);
    !begins_otherwise
        && !mark.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.contains(is_escaped_in_yaml)
}

/// Appends character data of XML 1.0 (§2.2, §2.4). A carriage return becomes a reference, because a reader would turn
/// it into a line feed.
fn push_xml(text: &[u8], out: &mut Vec<u8>) {
    for character in characters(text) {
        match character {
            '&' => out.extend_from_slice(b"&amp;"),
            '<' => out.extend_from_slice(b"&lt;"),
            '>' => out.extend_from_slice(b"&gt;"),
            '\r' => out.extend_from_slice(b"&#13;"),
            '\t' | '\n' => out.push(character as u8),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => push_character(char::REPLACEMENT_CHARACTER, out),
            _ => push_character(character, out),
        }
    }
}

fn push_character(character: char, out: &mut Vec<u8>) {
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn openmetrics_is_one_of_the_words() {
        let prefers = |accept: &str| prefers_openmetrics(Some(accept.as_bytes()));
        assert!(prefers(
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
        ));
        assert!(prefers("text/html, application/openmetrics-text"));
        assert!(!prefers("text/plain, application/openmetrics-text"));
        assert!(!prefers("*/*"));
        assert!(!prefers_openmetrics(None));
    }

    const FORMATS: [Format; 4] = [Format::Plain, Format::Json, Format::Yaml, Format::Xml];

    const A: Channel<'_> = Channel {
        id: b"a",
        published: 5,
        stored: 4,
        subscribers: 0,
    };
    const B: Channel<'_> = Channel {
        id: b"b",
        published: 1,
        stored: 1,
        subscribers: 12_345,
    };
    const GROUP: Group<'_> = Group {
        hostname: b"H",
        time: 1_795_325_022,
        channels: 4,
        wildcard_channels: 0,
        uptime: 2,
    };
    const SUMMARY: Summary<'_> = Summary {
        hostname: b"H",
        time: 1_795_325_022,
        channels: 14,
        wildcard_channels: 1,
        published: 37,
        stored: 36,
        messages_in_trash: 2,
        channels_in_delete: 3,
        channels_in_trash: 4,
        subscribers: 5,
        uptime: 206,
        workers: &[
            Worker {
                pid: 28_367,
                subscribers: 2,
                uptime: 206,
            },
            Worker {
                pid: 28_368,
                subscribers: 3,
                uptime: 7,
            },
        ],
    };

    fn single(format: Format, one: &Channel<'_>) -> String {
        let mut out = Vec::new();
        channel(format, one, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn group(format: Format, channels: &[Channel<'_>]) -> String {
        let mut out = Vec::new();
        let mut writer = GroupWriter::start(format, &GROUP, &mut out);
        for channel in channels {
            writer.channel(channel, &mut out);
        }
        writer.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn summarised(format: Format, figures: &Summary<'_>) -> String {
        let mut out = Vec::new();
        summary(format, figures, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Converts LF to CRLF, as on the wire, to keep the expected texts readable.
    fn lines(text: &str) -> String {
        text.replace('\n', "\r\n")
    }

    #[test]
    fn an_event_names_what_happened_and_to_whom() {
        let text = channel_event("channel_created", b"a\"b");
        assert_eq!(text, br#"{"type": "channel_created", "channel": "a\"b"}"#);
    }

    #[test]
    fn one_channel_in_each_format() {
        assert_eq!(
            single(Format::Json, &A),
            "{\"channel\": \"a\", \"published_messages\": 5, \"stored_messages\": 4, \"subscribers\": 0}\r\n"
        );
        assert_eq!(
            single(Format::Plain, &A),
            lines("channel: a\npublished_messages: 5\nstored_messages: 4\nactive_subscribers: 0\n")
        );
        assert_eq!(
            single(Format::Yaml, &A),
            lines("  channel: a\n  published_messages: 5\n  stored_messages: 4\n  subscribers: 0\n")
        );
        assert_eq!(
            single(Format::Xml, &A),
            lines(concat!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n",
                "<channel>\n",
                "  <name>a</name>\n",
                "  <published_messages>5</published_messages>\n",
                "  <stored_messages>4</stored_messages>\n",
                "  <subscribers>0</subscribers>\n",
                "</channel>\n",
                "\n",
            ))
        );
    }

    #[test]
    fn a_group_in_json() {
        let head = concat!(
            "{\"hostname\": \"H\", \"time\": \"2026-11-22T05:23:42\", ",
            "\"channels\": 4, \"wildcard_channels\": 0, \"uptime\": 2, \"infos\": [\r\n",
        );
        assert_eq!(group(Format::Json, &[]), format!("{head}]}}\r\n"));
        assert_eq!(
            group(Format::Json, &[A, B]),
            [
                head,
                "{\"channel\": \"a\", \"published_messages\": 5, \"stored_messages\": 4, \"subscribers\": 0},\r\n",
                "{\"channel\": \"b\", \"published_messages\": 1, \"stored_messages\": 1, \"subscribers\": 12345}\r\n",
                "]}\r\n",
            ]
            .concat()
        );
    }

    #[test]
    fn a_group_in_plain() {
        let head = "hostname: H, time: 2026-11-22T05:23:42, channels: 4, wildcard_channels: 0, uptime: 2, infos: \r\n";
        assert_eq!(group(Format::Plain, &[]), format!("{head}\r\n"));
        assert_eq!(
            group(Format::Plain, &[A, B]),
            head.to_owned()
                + &lines(concat!(
                    "channel: a\npublished_messages: 5\nstored_messages: 4\nactive_subscribers: 0,\n",
                    "channel: b\npublished_messages: 1\nstored_messages: 1\nactive_subscribers: 12345\n",
                ))
        );
    }

    #[test]
    fn a_group_in_yaml() {
        let head = "hostname: H\ntime: 2026-11-22T05:23:42\nchannels: 4\nwildcard_channels: 0\nuptime: 2\ninfos: \n";
        assert_eq!(group(Format::Yaml, &[]), lines(head) + "\r\n");
        assert_eq!(
            group(Format::Yaml, &[A, B]),
            lines(head)
                + &lines(concat!(
                    " -\n  channel: a\n  published_messages: 5\n  stored_messages: 4\n  subscribers: 0\n",
                    " -\n  channel: b\n  published_messages: 1\n  stored_messages: 1\n  subscribers: 12345\n",
                ))
        );
    }

    #[test]
    fn a_group_in_xml() {
        let head = concat!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n",
            "<root>\n",
            "  <hostname>H</hostname>\n",
            "  <time>2026-11-22T05:23:42</time>\n",
            "  <channels>4</channels>\n",
            "  <wildcard_channels>0</wildcard_channels>\n",
            "  <uptime>2</uptime>\n",
            "  <infos>\n",
        );
        let tail = "  </infos>\n</root>\n";
        assert_eq!(group(Format::Xml, &[]), lines(head) + &lines(tail));
        assert_eq!(
            group(Format::Xml, &[A, B]),
            lines(head)
                + &lines(concat!(
                    "<channel>\n",
                    "  <name>a</name>\n",
                    "  <published_messages>5</published_messages>\n",
                    "  <stored_messages>4</stored_messages>\n",
                    "  <subscribers>0</subscribers>\n",
                    "</channel>\n",
                    "<channel>\n",
                    "  <name>b</name>\n",
                    "  <published_messages>1</published_messages>\n",
                    "  <stored_messages>1</stored_messages>\n",
                    "  <subscribers>12345</subscribers>\n",
                    "</channel>\n",
                ))
                + &lines(tail)
        );
    }

    #[test]
    fn the_summary_in_json() {
        assert_eq!(
            summarised(Format::Json, &SUMMARY),
            concat!(
                "{\"hostname\": \"H\", \"time\": \"2026-11-22T05:23:42\", \"channels\": 14, \"wildcard_channels\": 1, ",
                "\"published_messages\": 37, \"stored_messages\": 36, \"messages_in_trash\": 2, ",
                "\"channels_in_delete\": 3, \"channels_in_trash\": 4, \"subscribers\": 5, \"uptime\": 206, ",
                "\"by_worker\": [\r\n",
                "{\"pid\": \"28367\", \"subscribers\": 2, \"uptime\": 206},\r\n",
                "{\"pid\": \"28368\", \"subscribers\": 3, \"uptime\": 7}\r\n",
                "]}\r\n",
            )
        );
    }

    #[test]
    fn the_summary_in_plain() {
        assert_eq!(
            summarised(Format::Plain, &SUMMARY),
            lines(concat!(
                "hostname: H\ntime: 2026-11-22T05:23:42\nchannels: 14\nwildcard_channels: 1\n",
                "published_messages: 37\nstored_messages: 36\nmessages_in_trash: 2\n",
                "channels_in_delete: 3\nchannels_in_trash: 4\nsubscribers: 5\nuptime: 206\nby_worker:\n",
                "  pid: 28367\n  subscribers: 2\n  uptime: 206,\n",
                "  pid: 28368\n  subscribers: 3\n  uptime: 7\n",
            ))
        );
    }

    #[test]
    fn the_summary_in_yaml() {
        assert_eq!(
            summarised(Format::Yaml, &SUMMARY),
            lines(concat!(
                "  hostname: H\n  time: 2026-11-22T05:23:42\n  channels: 14\n  wildcard_channels: 1\n",
                "  published_messages: 37\n  stored_messages: 36\n  messages_in_trash: 2\n",
                "  channels_in_delete: 3\n  channels_in_trash: 4\n  subscribers: 5\n  uptime: 206\n  by_worker:\n",
                "   -\n    pid: 28367\n    subscribers: 2\n    uptime: 206\n",
                "   -\n    pid: 28368\n    subscribers: 3\n    uptime: 7\n",
            ))
        );
    }

    #[test]
    fn the_summary_in_xml() {
        assert_eq!(
            summarised(Format::Xml, &SUMMARY),
            lines(concat!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n",
                "<infos>\n",
                "  <hostname>H</hostname>\n",
                "  <time>2026-11-22T05:23:42</time>\n",
                "  <channels>14</channels>\n",
                "  <wildcard_channels>1</wildcard_channels>\n",
                "  <published_messages>37</published_messages>\n",
                "  <stored_messages>36</stored_messages>\n",
                "  <messages_in_trash>2</messages_in_trash>\n",
                "  <channels_in_delete>3</channels_in_delete>\n",
                "  <channels_in_trash>4</channels_in_trash>\n",
                "  <subscribers>5</subscribers>\n",
                "  <uptime>206</uptime>\n",
                "  <by_worker><worker>\n",
                "  <pid>28367</pid>\n",
                "  <subscribers>2</subscribers>\n",
                "  <uptime>206</uptime>\n",
                "</worker>\n",
                "<worker>\n",
                "  <pid>28368</pid>\n",
                "  <subscribers>3</subscribers>\n",
                "  <uptime>7</uptime>\n",
                "</worker>\n",
                "</by_worker>\n",
                "</infos>\n",
            ))
        );
    }

    #[test]
    fn a_summary_without_workers_can_still_be_read() {
        let figures = Summary {
            workers: &[],
            ..SUMMARY
        };
        let json: serde_json::Value = serde_json::from_str(&summarised(Format::Json, &figures)).unwrap();
        assert_eq!(json["by_worker"], serde_json::json!([]));
        roxmltree::Document::parse(&summarised(Format::Xml, &figures)).unwrap();
        assert_eq!(
            yaml_of(&summarised(Format::Yaml, &figures))["uptime"].as_i64(),
            Some(206)
        );
    }

    #[test]
    fn accept_chooses_the_first_known_word_behind_a_slash() {
        let choices = [
            ("text/plain", Format::Plain, "text/plain"),
            ("application/json", Format::Json, "application/json"),
            ("application/yaml", Format::Yaml, "application/yaml"),
            ("application/xml", Format::Xml, "application/xml"),
            ("text/x-json", Format::Json, "text/x-json"),
            ("text/x-yaml", Format::Yaml, "text/x-yaml"),
            (
                "text/html, application/xml;q=0.1, text/plain",
                Format::Xml,
                "application/xml",
            ),
            ("whatever/plainly", Format::Plain, "text/plain"),
            ("application/jsonp", Format::Json, "application/json"),
            ("a//xml", Format::Xml, "application/xml"),
        ];
        for (accept, format, content_type) in choices {
            assert_eq!(negotiate(Some(accept.as_bytes())), (format, content_type), "{accept}");
        }
    }

    #[test]
    fn json_is_what_nobody_asked_for_differently() {
        for accept in ["", "*/*", "text/html", "xml", "application/XML", "/", "text/ plain"] {
            assert_eq!(
                negotiate(Some(accept.as_bytes())),
                (Format::Json, "application/json"),
                "{accept}"
            );
        }
        assert_eq!(negotiate(None), (Format::Json, "application/json"));
    }

    fn with_id(format: Format, id: &[u8]) -> String {
        single(format, &Channel { id, ..A })
    }

    #[test]
    fn ordinary_ids_look_as_they_always_did() {
        let ids = [
            "ch_1-2.3",
            "a b",
            "room:7",
            "a,b",
            "it's",
            "100%",
            "~x~",
            "a#b",
            "-a",
            "éè 日本",
            "",
            "123",
            "no",
        ];
        for id in ids {
            assert!(with_id(Format::Json, id.as_bytes()).starts_with(&format!("{{\"channel\": \"{id}\", ")));
            assert!(with_id(Format::Yaml, id.as_bytes()).starts_with(&format!("  channel: {id}\r\n")));
            assert!(with_id(Format::Xml, id.as_bytes()).contains(&format!("<name>{id}</name>")));
            assert!(with_id(Format::Plain, id.as_bytes()).starts_with(&format!("channel: {id}\r\n")));
        }
    }

    #[test]
    fn ids_that_would_break_a_document_are_escaped() {
        let id = b"a\"b\\c\n\x01<d>&\xff: #";
        assert!(with_id(Format::Json, id).contains(r#""a\"b\\c\n\u0001<d>&"#));
        assert!(with_id(Format::Yaml, id).starts_with("  channel: \"a\\\"b\\\\c\\n\\u0001<d>&\u{fffd}: #\"\r\n"));
        assert!(with_id(Format::Xml, id).contains("<name>a\"b\\c\n\u{fffd}&lt;d&gt;&amp;\u{fffd}: #</name>"));
    }

    fn yaml_of(text: &str) -> yaml_rust2::Yaml {
        yaml_rust2::YamlLoader::load_from_str(text).unwrap().remove(0)
    }

    /// The text that a YAML reader sees before it guesses types: `123` is read as a number, but written the same.
    fn yaml_text(value: &yaml_rust2::Yaml) -> String {
        use yaml_rust2::Yaml;
        match value {
            Yaml::String(text) | Yaml::Real(text) => text.clone(),
            Yaml::Integer(number) => number.to_string(),
            Yaml::Boolean(value) => value.to_string(),
            Yaml::Null => String::new(),
            other => panic!("an id is a scalar, not {other:?}"),
        }
    }

    /// Random bytes, with a high share of those that are special in one of the formats.
    fn id() -> impl Strategy<Value = Vec<u8>> {
        let text = prop_oneof![
            4 => "[\\[\\]{}\"'\\\\<>&:#,?!|%@`*~ \r\n\t-]{1,4}",
            4 => "[a-z.:/ -]{1,6}",
            1 => any::<char>().prop_map(String::from),
            1 => "\\PC{1,3}",
        ]
        .prop_map(String::into_bytes);
        let part = prop_oneof![
            8 => text,
            1 => prop::collection::vec(any::<u8>(), 1..4),
            1 => prop::sample::select(vec!["\u{fffe}", "\u{85}", "\u{feff}", "\u{2028}", "]]>", "---", "..."])
                .prop_map(|text| text.as_bytes().to_vec()),
        ];
        prop::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
    }

    fn unicode(id: &[u8]) -> String {
        characters(id).collect()
    }

    proptest! {
        #[test]
        fn any_ids_give_json_that_reads_back(ids in prop::collection::vec(id(), 0..4)) {
            let channels: Vec<_> = ids.iter().map(|id| Channel { id, ..A }).collect();
            let json: serde_json::Value = serde_json::from_str(&group(Format::Json, &channels)).unwrap();
            let read: Vec<_> = json["infos"].as_array().unwrap().iter().map(|info| info["channel"].as_str().unwrap()).collect();
            prop_assert_eq!(read, ids.iter().map(|id| unicode(id)).collect::<Vec<_>>());
        }

        #[test]
        fn any_ids_give_xml_that_reads_back(ids in prop::collection::vec(id(), 0..4)) {
            let channels: Vec<_> = ids.iter().map(|id| Channel { id, ..A }).collect();
            let text = group(Format::Xml, &channels);
            let xml = roxmltree::Document::parse(&text).unwrap();
            let read: Vec<_> = xml
                .descendants()
                .filter(|node| node.has_tag_name("name"))
                .map(|node| node.text().unwrap_or_default().to_owned())
                .collect();
            let forbidden = |character: char| {
                matches!(character, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}')
            };
            let expected: Vec<_> = ids.iter().map(|id| unicode(id).replace(forbidden, "\u{fffd}")).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_ids_give_yaml_that_reads_back(ids in prop::collection::vec(id(), 1..4)) {
            let channels: Vec<_> = ids.iter().map(|id| Channel { id, ..A }).collect();
            let yaml = yaml_of(&group(Format::Yaml, &channels));
            let infos = yaml["infos"].as_vec().unwrap();
            prop_assert_eq!(infos.len(), ids.len());
            for (info, id) in infos.iter().zip(&ids) {
                let id = unicode(id);
                let read = yaml_text(&info["channel"]);
                // `~`, `0x10` or `+1` are read as null or numbers.
                let retyped = !matches!(info["channel"], yaml_rust2::Yaml::String(_));
                prop_assert!(read == id || retyped, "{:?} became {:?}", id, read);
                prop_assert_eq!(info["subscribers"].as_i64(), Some(0));
            }
        }

        #[test]
        fn a_group_of_one_holds_what_the_single_form_holds(id in id()) {
            for format in FORMATS {
                let single = with_id_lossy(format, &id);
                let group = {
                    let mut out = Vec::new();
                    let mut writer = GroupWriter::start(format, &GROUP, &mut out);
                    writer.channel(&Channel { id: &id, ..A }, &mut out);
                    writer.finish(&mut out);
                    out
                };
                let mut record = Vec::new();
                push_channel(format, &Channel { id: &id, ..A }, &mut record);
                prop_assert!(memchr::memmem::find(&single, &record).is_some());
                prop_assert!(memchr::memmem::find(&group, &record).is_some());
            }
        }

        #[test]
        fn accept_headers_of_any_bytes_choose_something(accept: Vec<u8>) {
            let (_, content_type) = negotiate(Some(&accept));
            prop_assert!(content_type.contains('/'));
        }
    }

    fn with_id_lossy(format: Format, id: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        channel(format, &Channel { id, ..A }, &mut out);
        out
    }
}
