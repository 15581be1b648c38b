//! Made-up posts: a comment with all its fields.

use std::fmt::Write as _;

pub const BYTES: usize = 730;
pub const FORUMS: u64 = 50;
const THREADS: u64 = 1000;
const AUTHORS: u64 = 5000;

/// Every second one holds markup. `created` is what the reader finds in the published text.
pub fn make(n: u64, created: &str) -> String {
    let message = match n % 2 {
        0 => "Plain words of a comment that nobody needs to clean, ".repeat(5),
        _ => "<p>Some <b>bold</b> words, a <a href='http://example.com/'>link</a> &amp; more</p> ".repeat(3),
    };
    let (forum, thread, author) = (n % FORUMS, n % THREADS, n % AUTHORS);
    let mut post = String::with_capacity(BYTES);
    // Writing to a String cannot fail.
    let _ = write!(
        post,
        "{{\"id\":\"{n}\",\"forum\":\"f{forum}\",\"thread\":\"{thread}\",\"author\":{{\"id\":\"{author}\",\"name\":\"Ann\",\"email\":\
         \"a@example.com\",\"ip\":\"192.0.2.7\"}},\"message\":\"{message}\",\"created\":\"{created}\",\"pad\":\""
    );
    let room = (BYTES - 2).saturating_sub(post.len());
    post.extend(std::iter::repeat_n('x', room));
    post.push_str("\"}");
    post
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_post_is_json_of_the_size_it_should_have() {
        for n in 0..4 {
            let post = make(n, "2026-01-01T00:00:00Z");
            assert_eq!(post.len(), BYTES);
            assert!(serde_json::from_str::<serde_json::Value>(&post).is_ok());
        }
    }
}
