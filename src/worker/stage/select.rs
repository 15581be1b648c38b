//! `select`: keeps, drops and renames fields of an event.
//!
//! ```toml
//! lean = { type = "select", keep = ["id", "author.name", "message"], rename = { who = "author.name" } }
//! ```
//!
//! `keep` retains only these fields, in place; `drop` removes some; `rename` then moves fields: new place = old place.
//! Missing fields are skipped.

use std::sync::Arc;

use serde_json::Value;

use super::{Flow, Kind, Stage};
use crate::config::section::{FromItem, Section};
use crate::config::value::FromText;
use crate::event::Event;
use crate::field::FieldPath;

pub const KIND: Kind = Kind {
    name: "select",
    about: "keeps, drops and renames fields",
    read,
};

struct Select {
    keep: Option<Vec<FieldPath>>,
    drop: Vec<FieldPath>,
    /// New and old path.
    rename: Vec<(FieldPath, FieldPath)>,
}

fn read(section: &Section<'_>) -> Option<Arc<dyn Stage>> {
    let keep = section.optional::<Vec<FieldPath>>("keep");
    let drop = section.or("drop", Vec::new());
    let rename = section.table("rename", |table| {
        let pairs = table.entries().map(|(new, item)| {
            let place = FieldPath::from_text(&new).map_err(|error| item.complain(error)).ok();
            Some((place?, FieldPath::from_item(&item)?))
        });
        pairs.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()
    });
    if !["keep", "drop", "rename"].iter().any(|key| section.has(key)) {
        section.complain("does nothing: give it keep, drop or rename");
    }
    let rename = rename.unwrap_or_else(|| Some(Vec::new()))?;
    let all = keep
        .iter()
        .flatten()
        .chain(&drop)
        .chain(rename.iter().flat_map(|(new, old)| [new, old]));
    for path in all.filter(|path| !path.is_stored()) {
        section.complain(format!("{path} is the worker's own and cannot be changed"));
    }
    Some(Arc::new(Select { keep, drop, rename }))
}

impl Stage for Select {
    fn run(&self, event: &mut Event) -> Flow {
        let Some(fields) = &mut event.fields else {
            return Flow::Next;
        };
        if let Some(keep) = &self.keep {
            let mut kept = Value::Object(serde_json::Map::new());
            for path in keep {
                if let Some(value) = path.get_mut(fields) {
                    path.set(&mut kept, value.clone());
                }
            }
            *fields = kept;
        }
        for path in &self.drop {
            path.remove(fields);
        }
        for (new, old) in &self.rename {
            if let Some(value) = old.remove(fields) {
                new.set(fields, value);
            }
        }
        Flow::Next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::event::EventId;
    use serde_json::json;

    fn path(text: &str) -> FieldPath {
        FieldPath::from_text(text).unwrap()
    }

    #[test]
    fn fields_are_kept_dropped_and_renamed() {
        let stage = Select {
            keep: Some(vec![path("id"), path("author.name"), path("author.ip"), path("gone")]),
            drop: vec![path("author.ip")],
            rename: vec![(path("who.name"), path("author.name")), (path("x"), path("nothing"))],
        };
        let mut event = Event::new(EventId::new(1, 1), Timestamp(0), "".into());
        event.fields = Some(json!({"message": "m", "id": 1, "author": {"name": "Ann", "ip": "i", "age": 3}}));
        stage.run(&mut event);
        assert_eq!(
            event.fields,
            Some(json!({"id": 1, "author": {}, "who": {"name": "Ann"}}))
        );
    }
}
