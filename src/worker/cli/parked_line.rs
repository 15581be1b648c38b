//! A line of the dead-letter file, as commands read it.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use serde_json::Value;

use crate::clock::Timestamp;
use crate::config::{Config, PipelineSpec};
use crate::finalizer::Parked;

/// One line of the file.
pub struct Line {
    /// The text of the line.
    pub text: String,
    value: Value,
}

impl Line {
    fn get(&self, key: &str) -> &str {
        self.value[key].as_str().unwrap_or_default()
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    pub fn id(&self) -> String {
        self.get("id").to_owned()
    }

    pub fn pipeline(&self) -> &str {
        self.get("pipeline")
    }

    pub fn source(&self, config: &Config) -> String {
        let of_pipeline = config.pipelines.iter().find(|spec| spec.name == self.pipeline());
        match (self.get("source"), of_pipeline) {
            ("", Some(spec)) => config.sources[spec.source].name.clone(),
            ("", None) => "?".to_owned(),
            (source, _) => source.to_owned(),
        }
    }

    /// Pipelines to run it through: the one that parked it, or all of its source if it reached none.
    pub fn pipelines(&self, config: &Config) -> Vec<String> {
        let is_meant = |spec: &&PipelineSpec| match self.pipeline() {
            "" => config.sources[spec.source].name == self.get("source"),
            name => spec.name == name,
        };
        let meant = config.pipelines.iter().filter(is_meant);
        meant.map(|spec| spec.name.clone()).collect()
    }

    /// Time, component and reason.
    pub fn reason(&self) -> String {
        let mut text = String::new();
        for key in ["parked", "component"] {
            if !self.get(key).is_empty() {
                text += self.get(key);
                text += ": ";
            }
        }
        text += self.get("reason");
        if !self.pipeline().is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(text, " (pipeline \"{}\")", self.pipeline());
        }
        text
    }

    /// The line after another failed attempt.
    pub fn parked_again(&self, parked: &Parked) -> String {
        let mut value = self.value.clone();
        let before = value["attempts"].as_u64().unwrap_or_default();
        value["parked"] = Timestamp::now().to_string().into();
        value["pipeline"] = parked.pipeline.as_str().into();
        value["component"] = parked.component.as_str().into();
        value["reason"] = parked.text.as_str().into();
        value["attempts"] = (before + u64::from(parked.attempts)).into();
        value.to_string()
    }

    /// The original input.
    pub fn raw(&self) -> Vec<u8> {
        if let Some(raw) = self.value["raw"].as_str() {
            return raw.as_bytes().to_vec();
        }
        let hex = self.get("raw_hex").as_bytes().chunks_exact(2);
        hex.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect()
    }
}

/// All lines of the file.
pub fn lines(path: &Path) -> Result<Vec<Line>, String> {
    // Under the lock: a worker may be writing a line.
    let read = File::open(path).and_then(|file| {
        file.lock_shared()?;
        std::io::read_to_string(file)
    });
    let text = match read {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let parse = |(number, line): (usize, &str)| {
        let value =
            serde_json::from_str(line).map_err(|error| format!("{}:{}: {error}", path.display(), number + 1))?;
        let text = line.to_owned();
        Ok(Line { text, value })
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(parse)
        .collect()
}

/// The broker's copy of a reason, worded as in the file.
pub fn told(reason: &str) -> String {
    match serde_json::from_str(reason) {
        Ok(value @ Value::Object(_)) => Line {
            text: String::new(),
            value,
        }
        .reason(),
        _ => reason.to_owned(),
    }
}
