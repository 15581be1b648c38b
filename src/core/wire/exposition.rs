//! Metrics formats: the text format 0.0.4 of Prometheus, and OpenMetrics 1.0.0.
//!
//! They differ little: OpenMetrics names a counter's family without its `_total` and ends with an end marker.

use super::push_number;

/// The metrics format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    Prometheus,
    OpenMetrics,
}

impl Exposition {
    /// Chooses the format by the Accept header.
    pub fn negotiate(accept: Option<&[u8]>) -> Exposition {
        match accept {
            Some(accept) if memchr::memmem::find(accept, b"application/openmetrics-text").is_some() => {
                Exposition::OpenMetrics
            }
            _ => Exposition::Prometheus,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Exposition::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The metric type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// May go up and down.
    Gauge,
    /// Only increases; its samples are named `_total`.
    Counter,
    Histogram,
}

/// Name and value of a label.
pub type Label<'a> = (&'a str, &'a [u8]);

/// A histogram's observations.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<'a> {
    /// Upper bounds in milliseconds, ascending; one more bucket holds all observations above the last.
    pub bounds_ms: &'a [u64],
    /// Observations per bucket, not cumulative.
    pub buckets: &'a [u64],
    pub sum_ms: u64,
}

/// Builds an answer, family by family.
#[derive(Debug)]
pub struct Writer {
    exposition: Exposition,
    out: Vec<u8>,
}

/// A family to which samples are added.
#[derive(Debug)]
pub struct Family<'w> {
    name: &'static str,
    suffix: &'static str,
    out: &'w mut Vec<u8>,
}

impl Writer {
    pub fn new(exposition: Exposition) -> Writer {
        Writer {
            exposition,
            out: Vec::with_capacity(8192),
        }
    }

    /// Starts a family. `name` is without `_total`; `help` is a sentence without backslashes and line ends.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let (word, suffix) = match kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
            Kind::Histogram => ("histogram", ""),
        };
        let shown = match self.exposition {
            Exposition::Prometheus => suffix,
            Exposition::OpenMetrics => "",
        };
        for (keyword, text) in [("HELP", help), ("TYPE", word)] {
            let line = ["# ", keyword, " ", name, shown, " ", text, "\n"].concat();
            self.out.extend_from_slice(line.as_bytes());
        }
        Family {
            name,
            suffix,
            out: &mut self.out,
        }
    }

    /// Ends the answer and returns it.
    pub fn finish(mut self) -> Vec<u8> {
        if self.exposition == Exposition::OpenMetrics {
            self.out.extend_from_slice(b"# EOF\n");
        }
        self.out
    }
}

impl Family<'_> {
    pub fn sample(&mut self, labels: &[Label<'_>], value: u64) -> &mut Self {
        self.named(self.suffix, labels, |out| push_number(value, out))
    }

    /// A sample in microseconds, written in seconds.
    pub fn sample_us(&mut self, labels: &[Label<'_>], value_us: u64) -> &mut Self {
        self.named(self.suffix, labels, |out| {
            out.extend_from_slice(format!("{}.{:06}", value_us / 1_000_000, value_us % 1_000_000).as_bytes());
        })
    }

    /// The samples of a histogram, in seconds.
    pub fn histogram(&mut self, histogram: Histogram<'_>) -> &mut Self {
        let mut count = 0;
        for (index, &in_bucket) in histogram.buckets.iter().enumerate() {
            count += in_bucket;
            let mut bound = Vec::new();
            match histogram.bounds_ms.get(index) {
                Some(&bound_ms) => push_seconds(bound_ms, &mut bound),
                None => bound.extend_from_slice(b"+Inf"),
            }
            self.named("_bucket", &[("le", &bound)], |out| push_number(count, out));
        }
        self.named("_sum", &[], |out| push_seconds(histogram.sum_ms, out));
        self.named("_count", &[], |out| push_number(count, out))
    }

    fn named(&mut self, suffix: &str, labels: &[Label<'_>], value: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        self.out.extend_from_slice(self.name.as_bytes());
        self.out.extend_from_slice(suffix.as_bytes());
        for (index, (name, text)) in labels.iter().enumerate() {
            self.out.push(if index == 0 { b'{' } else { b',' });
            self.out.extend_from_slice(name.as_bytes());
            self.out.extend_from_slice(b"=\"");
            push_label(text, self.out);
            self.out.push(b'"');
        }
        if !labels.is_empty() {
            self.out.push(b'}');
        }
        self.out.push(b' ');
        value(self.out);
        self.out.push(b'\n');
        self
    }
}

/// Appends a label's value: three characters are escaped; bytes that are not valid UTF-8 become U+FFFD.
fn push_label(text: &[u8], out: &mut Vec<u8>) {
    for byte in String::from_utf8_lossy(text).bytes() {
        match byte {
            b'\\' | b'"' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            _ => out.push(byte),
        }
    }
}

/// Appends milliseconds as seconds, always with a decimal point: OpenMetrics requires one spelling of bounds.
fn push_seconds(ms: u64, out: &mut Vec<u8>) {
    push_number(ms / 1000, out);
    let millis = format!(".{:03}", ms % 1000);
    let digits = millis.trim_end_matches('0');
    out.extend_from_slice(if digits == "." { b".0" } else { digits.as_bytes() });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(exposition: Exposition) -> String {
        let mut writer = Writer::new(exposition);
        writer.family("x_things", Kind::Gauge, "Things.").sample(&[], 7);
        writer
            .family("x_messages", Kind::Counter, "Messages.")
            .sample(&[("kind", b"a")], 1)
            .sample(&[("kind", b"b"), ("why", b"\"\\\n")], 2);
        writer
            .family("x_seconds", Kind::Histogram, "Time.")
            .histogram(Histogram {
                bounds_ms: &[1, 20, 1500, 30_000],
                buckets: &[1, 0, 2, 0, 3],
                sum_ms: 90_050,
            });
        String::from_utf8(writer.finish()).unwrap()
    }

    #[test]
    fn the_text_format_of_prometheus() {
        let expected = r#"# HELP x_things Things.
# TYPE x_things gauge
x_things 7
# HELP x_messages_total Messages.
# TYPE x_messages_total counter
x_messages_total{kind="a"} 1
x_messages_total{kind="b",why="\"\\\n"} 2
# HELP x_seconds Time.
# TYPE x_seconds histogram
x_seconds_bucket{le="0.001"} 1
x_seconds_bucket{le="0.02"} 1
x_seconds_bucket{le="1.5"} 3
x_seconds_bucket{le="30.0"} 3
x_seconds_bucket{le="+Inf"} 6
x_seconds_sum 90.05
x_seconds_count 6
"#;
        assert_eq!(written(Exposition::Prometheus), expected);
    }

    #[test]
    fn openmetrics_differs_in_the_names_of_counters_and_the_end() {
        let expected = written(Exposition::Prometheus)
            .replace("# HELP x_messages_total", "# HELP x_messages")
            .replace("# TYPE x_messages_total", "# TYPE x_messages")
            + "# EOF\n";
        assert_eq!(written(Exposition::OpenMetrics), expected);
    }

    #[test]
    fn openmetrics_only_for_those_who_ask_for_it() {
        let negotiate = |accept: &str| Exposition::negotiate(Some(accept.as_bytes()));
        assert_eq!(Exposition::negotiate(None), Exposition::Prometheus);
        assert_eq!(negotiate("*/*"), Exposition::Prometheus);
        assert_eq!(negotiate("text/plain;version=0.0.4"), Exposition::Prometheus);
        assert_eq!(
            negotiate("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"),
            Exposition::OpenMetrics
        );
    }

    proptest! {
        #[test]
        fn a_label_is_one_string_whatever_it_holds(text: Vec<u8>) {
            let mut out = Vec::new();
            push_label(&text, &mut out);
            let out = String::from_utf8(out).unwrap();
            prop_assert!(!out.contains('\n'));
            let mut read = String::new();
            let mut rest = out.chars();
            while let Some(character) = rest.next() {
                match character {
                    '\\' => read.push(match rest.next() {
                        Some('n') => '\n',
                        Some(escaped) => escaped,
                        None => panic!("an escape at the end"),
                    }),
                    '"' => panic!("the string ends early"),
                    _ => read.push(character),
                }
            }
            prop_assert_eq!(read, String::from_utf8_lossy(&text));
        }

        #[test]
        fn seconds_are_what_milliseconds_say(ms in 0..1u64 << 50) {
            let mut out = Vec::new();
            push_seconds(ms, &mut out);
            let text = String::from_utf8(out).unwrap();
            prop_assert!(text.contains('.'));
            prop_assert_eq!((text.parse::<f64>().unwrap() * 1000.0).round() as u64, ms);
        }
    }
}
