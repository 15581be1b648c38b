//! `null`: accepts and discards all events, for dark pipelines and measurements.
//!
//! ```toml
//! nowhere = { type = "null" }
//! ```

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::{Delivery, Kind, LaneSink, RunningSink, Scene, Sink, Verdict};
use crate::config::section::Section;
use crate::engine::sequencer::Reservation;
use crate::event::Event;

pub const KIND: Kind = Kind {
    name: "null",
    about: "takes everything and keeps nothing",
    read: |_: &Section<'_>| Some(Arc::new(Null)),
};

#[derive(Clone, Copy, Debug)]
pub struct Null;

impl Sink for Null {
    fn start(&self, _scene: &mut Scene<'_>) -> io::Result<Arc<dyn RunningSink>> {
        Ok(Arc::new(*self))
    }
}

impl RunningSink for Null {
    fn open(&self) -> Rc<dyn LaneSink> {
        Rc::new(*self)
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

impl LaneSink for Null {
    fn deliver(&self, _event: Arc<Event>, _reservation: Option<Reservation>) -> Delivery {
        Box::pin(std::future::ready(Verdict::Accepted))
    }
}
