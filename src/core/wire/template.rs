//! Message templates (`compat.md` §14).

/// What the tokens of a template stand for.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// Message id; -1 ping, -2 deletion notice, -3 long polling time-out.
    pub id: i64,
    pub channel: &'a [u8],
    pub text: &'a [u8],
    /// Publish time, seconds since the epoch; 0 for what is no message.
    pub time: u64,
    pub tag: u32,
    pub event_id: Option<&'a [u8]>,
    pub event_type: Option<&'a [u8]>,
}

/// A parsed template: literals and tokens. Parsed once, at configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
}

impl Template {
    pub fn parse(_source: &[u8]) -> Template {
        todo!()
    }

    /// Appends the formatted message. Substituted text is never scanned again.
    pub fn render(&self, _fields: &Fields<'_>, _out: &mut Vec<u8>) {
        todo!()
    }
}
