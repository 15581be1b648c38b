//! Conditions on an event, as minijinja expressions: `approved and forum != "test"`.

use std::sync::OnceLock;

use minijinja::value::Serde;
use minijinja::{Environment, Expression, UndefinedBehavior};

use super::template_check::{self, describe};
use crate::config::value::FromText;
use crate::event::Event;

/// Enough for a long condition; bounds a pathological one.
const FUEL: u64 = 5_000;

/// A condition on an event.
pub struct Condition {
    text: String,
    expression: Expression<'static, 'static>,
}

impl FromText for Condition {
    const WANTED: &'static str = "a condition such as \"approved and forum != 'test'\"";

    fn from_text(text: &str) -> Result<Self, String> {
        let expression = environment().compile_expression_owned(text.to_owned());
        let bad = |error: String| format!("\"{text}\": {error}");
        let expression = expression.map_err(|error| bad(describe(&error)))?;
        template_check::check_calls(environment(), &format!("{{{{ {text} }}}}")).map_err(bad)?;
        if let Err(error) = expression.eval(template_check::empty_event())
            && template_check::is_of_the_template(&error)
        {
            return Err(bad(describe(&error)));
        }
        Ok(Self {
            text: text.to_owned(),
            expression,
        })
    }
}

/// Shared by all conditions of the process, however often the configuration is read.
fn environment() -> &'static Environment<'static> {
    static SHARED: OnceLock<Environment<'static>> = OnceLock::new();
    SHARED.get_or_init(|| {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment
    })
}

impl Condition {
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Evaluates the condition; missing values are false.
    pub fn holds(&self, event: &Event) -> Result<bool, String> {
        let own = minijinja::context! {
            id => event.id.to_string(),
            time => event.received.to_string(),
            type => event.event_type.as_deref(),
            channels => &event.channels,
        };
        let context = minijinja::context! {
            _event => own,
            ..minijinja::Value::from(Serde(&event.fields))
        };
        let value = self.expression.eval(context);
        value
            .map(|value| value.is_true())
            .map_err(|error| format!("\"{}\": {}", self.text, describe(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::event::EventId;
    use serde_json::json;

    #[test]
    fn conditions_read_fields_and_what_is_missing_is_false() {
        let mut event = Event::new(EventId::new(1, 2), Timestamp(0), "".into());
        event.fields = Some(json!({"n": 5, "forum": "cnn", "author": {"name": "Ann"}, "tags": ["a"]}));
        for (text, expected) in [
            ("n > 4 and forum == 'cnn'", true),
            ("author.name == 'Bob'", false),
            ("gone.deep.down", false),
            ("'a' in tags", true),
            ("_event.id == '1-2'", true),
            ("forum in ['bbc', 'cnn']", true),
        ] {
            assert_eq!(
                Condition::from_text(text).unwrap().holds(&event),
                Ok(expected),
                "{text}"
            );
        }
        assert!(Condition::from_text("n >").is_err());
        for (text, expected) in [
            ("n and forum|shout", "there is no filter \"shout\""),
            ("n or shout(forum)", "there is no function \"shout\""),
            ("n is loud", "there is no test \"loud\""),
            ("forum|replace('a')", "missing argument"),
        ] {
            let error = Condition::from_text(text).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
        assert!(Condition::from_text("n + author").unwrap().holds(&event).is_err());
    }
}
